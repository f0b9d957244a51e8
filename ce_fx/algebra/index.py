"""Indices: the named, sized coordinates that tensors are written over.

A tensor's axis is a *tuple* of indices, row-major: `(c, r)` is an axis of size `c.size * r.size` whose coordinate is
`c * r.size + r`. An empty tuple is an axis of size 1. That one idea makes reshape, unsqueeze, groups, channel shuffle
and Kronecker products the same few moves: refine two axes to a common split, rename, regroup.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeAlias


@dataclass(frozen=True, order=True)
class Index:
    """An index: an identity and a size.

    Two indices are the same coordinate exactly when they compare equal, so an identity must never be given to two
    sizes.

    Attributes:
        name: the identity. From a string it is the letter or the `(r1)` name; lifted graphs number theirs.
        size: how many values the coordinate takes, an int >= 0. For a symbolic size it is the hint to plan by.
        symbol: the name of a symbolic size, else the empty string. Symbolic indices are never split, and are equal
            only if their symbols are.
    """

    name: str
    size: int
    symbol: str = ""

    def __str__(self) -> str:
        return self.name


Axis: TypeAlias = tuple[Index, ...]
Axes: TypeAlias = tuple[Axis, ...]


def axis_size(axis: Axis) -> int:
    """The number of positions on an axis: the product of its indices' sizes, 1 for the empty axis."""
    return prod(index.size for index in axis)


def flat(axes: Axes) -> Axis:
    """All indices of some axes, row-major, repeats kept."""
    return tuple(index for axis in axes for index in axis)
