"""NumPy numbers among module attributes become equal Python numbers, so that Dynamo sees one graph.

Dynamo cannot guard NumPy scalars and arrays that layers keep as plain attributes: a stride stored as an array breaks
the graph at every convolution (tensorly-torch ResNet-18: 20 graphs). Equal Python ints and tuples mean the same to
every op that takes them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_MISSING = object()


class Ints(tuple[int, ...]):
    """A tuple in place of a 1-d NumPy array, which goes on calculating as the array would.

    Arithmetic is element by element, comparison too, and any other method or attribute of an array is that of an
    equal array. What stays a tuple's: hashing, and equality with a tuple.
    """

    def tolist(self) -> list[int]:
        """The numbers as a list, as of an array."""
        return list(self)

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return Ints(value) if isinstance(key, slice) else value

    def __neg__(self) -> Ints:
        return Ints(-a for a in self)

    def __eq__(self, other: object) -> Any:
        return Ints(a == other for a in self) if isinstance(other, (int, float)) else super().__eq__(other)

    def __ne__(self, other: object) -> Any:
        return Ints(a != other for a in self) if isinstance(other, (int, float)) else super().__ne__(other)

    __hash__ = tuple.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask for methods that a tuple does without
            raise AttributeError(name)
        import numpy

        return getattr(numpy.array(tuple(self)), name)


def _elementwise(name: str) -> Callable[[Ints, Any], Any]:
    """An operator of Ints: `name` of the numbers, one by one, with a number or with as many numbers."""
    calculate = getattr(operator, name.strip("_"))

    def forward(self: Ints, other: Any) -> Any:
        if isinstance(other, (int, float)):
            return Ints(calculate(a, other) for a in self)
        if isinstance(other, (tuple, list)) and len(other) == len(self):
            return Ints(calculate(a, b) for a, b in zip(self, other, strict=True))
        return NotImplemented

    return forward


def _reflected(name: str) -> Callable[[Ints, Any], Any]:
    """The same operator with its sides swapped."""
    calculate = getattr(operator, name.strip("_"))

    def backward(self: Ints, other: Any) -> Any:
        if isinstance(other, (int, float)):
            return Ints(calculate(other, a) for a in self)
        if isinstance(other, (tuple, list)) and len(other) == len(self):
            return Ints(calculate(b, a) for a, b in zip(self, other, strict=True))
        return NotImplemented

    return backward


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Ints, f"__{_name}__", _elementwise(_name))
    setattr(Ints, f"__r{_name}__", _reflected(_name))
for _name in ("lt", "le", "gt", "ge"):
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
    """A 1-d integer or boolean array as a tuple with `tolist`, a 0-d one as a number."""
    if value.dtype.kind not in "iub" or value.ndim > 1:
        return _MISSING
    return Ints(value.tolist()) if value.ndim else value.item()


_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_RULES: tuple[tuple[set[str], Callable[[Any], Any]], ...] = (
    (_INTEGERS | {"longlong", "ulonglong", "intc", "uintc"}, int),
    ({"bool", "bool_"}, bool),
    ({"ndarray"}, _array),
)
