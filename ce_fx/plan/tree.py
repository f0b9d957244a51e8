"""Evaluation trees, and what one of their steps is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ce_fx.algebra import Index
from ce_fx.plan.grid import Grid
from ce_fx.plan.network import Network

Tree: TypeAlias = "int | tuple[Tree, Tree]"
"""A binary tree over operand numbers: `((0, 1), 2)` joins operands 0 and 1 first."""


def subset_of(tree: Tree) -> int:
    """Bit set of the operands under a tree."""
    if isinstance(tree, int):
        return 1 << tree
    return subset_of(tree[0]) | subset_of(tree[1])


def splits_of(tree: Tree) -> Iterator[tuple[int, int]]:
    """The pairs of subsets that a tree joins, in the order of evaluation (children first, left before right)."""
    if not isinstance(tree, int):
        yield from splits_of(tree[0])
        yield from splits_of(tree[1])
        yield subset_of(tree[0]), subset_of(tree[1])


@dataclass(frozen=True)
class AxisStep:
    """A convolution axis on which both sides of a step have a part.

    Attributes:
        axis: number of the axis in the network.
        features_left: the features are on the left (True), on the right (False), or two kernels merge (None).
        left, right, out: the positions that the two sides hold and the result keeps.
    """

    axis: int
    features_left: bool | None
    left: Grid
    right: Grid
    out: Grid

    @property
    def kernel(self) -> int:
        """Length of the kernel side; of the longer kernel where two merge."""
        if self.features_left is None:
            return max(self.left.length, self.right.length)
        return self.right.length if self.features_left else self.left.length


@dataclass(frozen=True)
class Step:
    """One pairwise step by the kinds of its indices; a function of the two subsets.

    Ordinary indices: `batch` in both and kept, `contracted` in both and summed, `left_free` and `right_free` in one
    only. Convolution axes: `joined` where both sides have a part; `left_axes` and `right_axes` are the numbers of
    those that only one side has (they pass through, with the length they have there).
    """

    left: int
    right: int
    batch: tuple[Index, ...]
    contracted: tuple[Index, ...]
    left_free: tuple[Index, ...]
    right_free: tuple[Index, ...]
    joined: tuple[AxisStep, ...]
    left_axes: tuple[int, ...]
    right_axes: tuple[int, ...]


def step_of(network: Network, left: int, right: int) -> Step:
    """Sort the indices of the step that joins two disjoint subsets by their kind."""
    a, b, out = network.keep(left), network.keep(right), network.keep(left | right)

    def select(mask: int) -> tuple[Index, ...]:
        return tuple(index for index in network.indices if network.bit[index] & mask)

    joined, left_axes, right_axes = [], [], []
    for number, axis in enumerate(network.axes):
        grids = network.grid(number, left), network.grid(number, right)
        if grids[0] is not None and grids[1] is not None:
            features = 1 << axis.features
            side = True if features & left else False if features & right else None
            result = network.grid(number, left | right)
            assert result is not None
            joined.append(AxisStep(number, side, grids[0], grids[1], result))
        elif grids[0] is not None:
            left_axes.append(number)
        elif grids[1] is not None:
            right_axes.append(number)
    return Step(
        left,
        right,
        batch=select(a & b & out),
        contracted=select(a & b & ~out),
        left_free=select(a & ~b),
        right_free=select(b & ~a),
        joined=tuple(joined),
        left_axes=tuple(left_axes),
        right_axes=tuple(right_axes),
    )
