"""NumPy numbers among module attributes become equal Python numbers, so that Dynamo sees one graph.

Dynamo cannot guard NumPy scalars and arrays that layers keep as plain attributes: a stride stored as an array breaks
the graph at every convolution (tensorly-torch ResNet-18: 20 graphs). Equal Python ints mean the same to every op that
takes them. An array of two axes stays: what stands for it would be another index of a tensor than it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

_MISSING = object()


class Ints:
    """In place of a 1-d NumPy array: numbers that Dynamo follows, which go on calculating as the array would.

    Arithmetic and comparison are element by element, and any other method or attribute is that of an equal array. It is
    no tuple: that would be another index of a tensor than an array is.
    """

    def __init__(self, numbers: Iterable[Any]) -> None:
        self._numbers = tuple(numbers)

    def tolist(self) -> list[Any]:
        """The numbers as a list, as of an array."""
        return list(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._numbers)

    def __getitem__(self, key: Any) -> Any:
        value = self._numbers[key]
        return Ints(value) if isinstance(key, slice) else value

    def __bool__(self) -> bool:
        if len(self._numbers) != 1:
            raise ValueError("the truth value of an array with more than one element is ambiguous")
        return bool(self._numbers[0])

    def __neg__(self) -> Ints:
        return Ints(-a for a in self._numbers)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        import numpy

        return numpy.array(self._numbers, dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask for methods that it does without
            raise AttributeError(name)
        return getattr(self.__array__(), name)

    def __repr__(self) -> str:
        return f"Ints({list(self._numbers)})"


def _elementwise(name: str, swapped: bool = False) -> Callable[[Ints, Any], Any]:
    """An operator of Ints: `name` of the numbers, one by one, with a number or with as many numbers."""
    operate = getattr(operator, name.strip("_"))

    def calculate(self: Ints, other: Any) -> Any:
        numbers = self.tolist()
        if isinstance(other, (int, float)):
            others = [other] * len(numbers)
        elif isinstance(other, (Ints, tuple, list)) and len(other) == len(numbers):
            others = list(other)
        else:
            return NotImplemented
        return Ints([operate(b, a) if swapped else operate(a, b) for a, b in zip(numbers, others, strict=True)])

    return calculate


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Ints, f"__{_name}__", _elementwise(_name))
    setattr(Ints, f"__r{_name}__", _elementwise(_name, swapped=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Ints, f"__{_name}__", _elementwise(_name))


@dataclass(frozen=True)
class Plain:
    """One attribute that was made plain.

    Attributes:
        owner: the module.
        name: the attribute.
        before, after: its values.
        path: where it is, for the report.
    """

    owner: torch.nn.Module
    name: str
    before: Any
    after: Any
    path: str


def make_plain(model: torch.nn.Module) -> list[Plain]:
    """Replace NumPy integers, booleans and 1-d integer arrays among a model's module attributes.

    Returns:
        What was changed, to be handed to `undo`.
    """
    changed = []
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            after = _plain(value)
            if after is not _MISSING:
                module.__dict__[name] = after
                changed.append(Plain(module, name, value, after, f"{path}.{name}".strip(".")))
    return changed


def undo(changed: list[Plain]) -> None:
    """Put the original values back, where nobody has set another since."""
    for entry in changed:
        if entry.owner.__dict__.get(entry.name, _MISSING) is entry.after:
            entry.owner.__dict__[entry.name] = entry.before


def describe(changed: list[Plain]) -> tuple[str, ...]:
    """One line for the report, or none."""
    if not changed:
        return ()
    names = sorted({entry.name for entry in changed})
    modules = len({id(entry.owner) for entry in changed})
    return (f"NumPy values of attributes {', '.join(names)} in {modules} modules became equal Python numbers",)


def _plain(value: Any) -> Any:
    """The equal Python value, or `_MISSING` where there is nothing to do."""
    kind = type(value)
    if kind.__module__ == "numpy":
        rule = next((rule for names, rule in _RULES if kind.__name__ in names), None)
        return _MISSING if rule is None else rule(value)
    if kind in (tuple, list) and any(type(item).__module__ == "numpy" for item in value):
        items = [_plain(item) for item in value]
        return kind(old if new is _MISSING else new for old, new in zip(value, items, strict=True))
    return _MISSING


def _array(value: Any) -> Any:
    """A 1-d integer or boolean array as `Ints`, a 0-d one as a number."""
    if value.dtype.kind not in "iub" or value.ndim > 1:
        return _MISSING
    return Ints(value.tolist()) if value.ndim else value.item()


_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_RULES: tuple[tuple[set[str], Callable[[Any], Any]], ...] = (
    (_INTEGERS | {"longlong", "ulonglong", "intc", "uintc"}, int),
    ({"bool", "bool_"}, bool),
    ({"ndarray"}, _array),
)
