"""Arguments of ATen nodes: by name, as numbers, one for each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

from torch.fx import Node


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen node by name, with defaults."""
    schema = node.target._schema.arguments
    defaults = {a.name: a.default_value if a.has_default_value() else None for a in schema}
    return {**defaults, **{a.name: value for a, value in zip(schema, node.args, strict=False)}, **node.kwargs}


def is_number(value: Any) -> bool:
    """Whether an argument is a finite number that stands in the graph: neither a truth value nor a symbol."""
    return isinstance(value, Number) and not isinstance(value, bool) and abs(value) < float("inf")  # type: ignore[arg-type]


def each(value: Sequence[Any] | Any, n: int) -> tuple[Any, ...]:
    """One value for each of n axes."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * n if len(values) == 1 else values
