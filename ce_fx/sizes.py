"""Sizes that may be symbolic."""

from __future__ import annotations

from typing import Any


def known(size: Any) -> bool:
    """Whether there is a size to plan by: a number, or a symbolic size that has a hint."""
    return isinstance(size, int) or bool(size.node.has_hint())


def hint(size: Any) -> int:
    """The size to plan by: an int as it is, the hint of a symbolic one.

    `int(size)` would do for both, but it fixes a symbolic size to its hint: the graph would hold for that size only.
    """
    return size if isinstance(size, int) else int(size.node.hint)
