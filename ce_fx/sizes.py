"""Sizes that may be symbolic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from math import prod
from typing import Any

_TIMES = "·"
"""Between the factors of a symbolic size; torch never prints it."""

_ASSUMED: ContextVar[tuple[Mapping[Any, Any], dict[Any, int]] | None] = ContextVar("ce_fx_sizes", default=None)


def known(size: Any) -> bool:
    """Whether there is a size to plan by: a number, or a symbolic size that has a hint."""
    return isinstance(size, int) or bool(size.node.has_hint())


def hint(size: Any) -> int:
    """The size to plan by: an int as it is, the hint of a symbolic one, or what is assumed of it (see `assuming`).

    `int(size)` would do for both, but it fixes a symbolic size to its hint: the graph would hold for that size only.
    """
    if isinstance(size, int):
        return size
    assumed = _ASSUMED.get()
    if assumed is None:
        return int(size.node.hint)
    values, found = assumed
    expression = size.node.expr
    if expression not in found:
        found[expression] = int(expression.xreplace(values))
    return found[expression]


def symbol(size: Any) -> str:
    """The name of a symbolic size: its factors, "2·s0·s1", a number first; "" for a number, or one fixed by a guard."""
    return "" if isinstance(size, int) else name_of(size.node.expr)


def size_or_symbol(size: Any) -> int | str:
    """A number, or the name of a symbolic size."""
    return size if isinstance(size, int) else symbol(size) or hint(size)


def factors(name: str) -> tuple[int, Counter[str]]:
    """The number and the symbols whose product a symbolic size is: of "2·s0·s0", 2 and s0 twice."""
    parts = name.split(_TIMES)
    numbers = [part for part in parts if part.isdecimal()]
    return prod(map(int, numbers)), Counter(part for part in parts if part not in numbers)


def product(sizes: Iterable[int | str]) -> int | str:
    """The product of numbers and of names of symbolic sizes."""
    number, names = 1, Counter[str]()
    for size in sizes:
        times, more = (size, Counter[str]()) if isinstance(size, int) else factors(size)
        number, names = number * times, names + more
    return _TIMES.join([*[str(number)] * (number != 1), *sorted(names.elements())]) if names else number


@lru_cache(maxsize=10_000)
def name_of(expression: Any) -> str:
    """The name of a sympy expression; what is no product is a factor by itself."""
    number, bases = bases_of(expression)
    return str(product([number, *map(str, bases)])) if bases else ""


@lru_cache(maxsize=10_000)
def bases_of(expression: Any) -> tuple[int, tuple[Any, ...]]:
    """The number and the sympy expressions whose product a sympy expression is; one that is no product is a base."""
    import sympy
    from torch.utils._sympy.functions import FloorDiv

    def quotient(a: Any, b: Any) -> Any:
        exact = sympy.cancel(a / b)
        return exact if sympy.fraction(sympy.together(exact))[1] == 1 else FloorDiv(a, b)

    size = sympy.factor(expression.replace(FloorDiv, quotient))
    if size.is_number:
        return int(size), ()
    number, bases = 1, []
    for base, power in (part.as_base_exp() for part in sympy.Mul.make_args(size)):
        if not power.is_Integer or power < 0 or (base.is_number and not base.is_Integer) or base.is_negative:
            return 1, (size,)
        if base.is_Integer:
            number *= int(base) ** int(power)
        else:
            bases += [base] * int(power)
    return number, tuple(bases)


@contextmanager
def assuming(values: Mapping[Any, Any]) -> Iterator[None]:
    """Plan and price as if symbols had other values than their hints.

    Args:
        values: every symbol and its value, as sympy numbers.
    """
    token = _ASSUMED.set((values, {}))
    try:
        yield
    finally:
        _ASSUMED.reset(token)
