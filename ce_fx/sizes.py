"""Sizes that may be symbolic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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
    """The name of a symbolic size; "" for a number, and for a size that a guard has fixed by now."""
    return "" if isinstance(size, int) or size.node.expr.is_number else str(size)


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
