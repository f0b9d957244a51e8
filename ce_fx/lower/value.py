"""An emitted tensor and the letters of its dims, and how it is brought into another arrangement.

A *letter* is an ordinary index, or the number of a convolution axis. A dim holds a row-major tuple of letters.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch.fx import Graph, Node

from ce_fx.algebra import Index

Letter: TypeAlias = "Index | int"
Letters: TypeAlias = tuple[Letter, ...]


class Extent(int):
    """A symbolic size: the hint as an int, and the node that gives the size when the graph runs.

    Arithmetic gives plain ints, by the hint; `product_of` keeps to what is symbolic.
    """

    node: Node

    @classmethod
    def of(cls, graph: Graph, tensor: Node, dim: int, hint: int) -> Extent:
        """The size of one dim of an emitted tensor."""
        size = cls(hint)
        size.node = graph.call_method("size", (tensor, dim))
        return size


class LoweringError(ValueError):
    """A step has no exact form in torch ops here; the message is a reason for the report."""


@dataclass(frozen=True)
class Value:
    """A node and the letters of its tensor's dims.

    Attributes:
        node: what is emitted.
        dims: one tuple of letters per dim.
        lengths: the length of each convolution axis that the value has a part in, and the size of each symbolic index.
    """

    node: Node
    dims: tuple[Letters, ...]
    lengths: Mapping[Letter, int]

    @property
    def letters(self) -> Letters:
        """All letters, in memory order."""
        return tuple(letter for dim in self.dims for letter in dim)

    def size(self, letter: Letter) -> int:
        """Positions of a letter."""
        return self.lengths[letter] if isinstance(letter, int) else self.lengths.get(letter, letter.size)


def arranged(graph: Graph, value: Value, dims: Sequence[Letters]) -> Node:
    """Emit the value with other dims: reshapes and permutations, as few as it takes.

    Args:
        graph: where to emit.
        value: what to rearrange.
        dims: the same letters; a dim may be empty (size 1).

    Returns:
        The node; a reshape after a permutation copies, the rest are views.
    """
    target = tuple(tuple(dim) for dim in dims)
    if target == value.dims:
        return value.node
    wanted = tuple(letter for dim in target for letter in dim)
    if wanted != value.letters:
        value = _permuted(graph, value, wanted)
    if target == value.dims:
        return value.node
    return graph.call_function(torch.reshape, (value.node, shape_of(graph, value, target)))


_DENSE = (torch.mm, torch.bmm, torch.conv1d, torch.conv2d, torch.conv3d)


def dense(graph: Graph, node: Node) -> Node:
    """A kernel that torch's convolutions can take: contiguous.

    The backward of torch's plain CPU convolution (float64) refuses a permuted kernel. An operand that is used as it
    was given is left alone, and so is the result of an op that is contiguous anyway.
    """
    if node.op == "placeholder" or node.target in _DENSE:
        return node
    return graph.call_method("contiguous", (node,))


def split(graph: Graph, value: Value) -> Value:
    """One letter a dim."""
    dims = tuple((letter,) for letter in value.letters)
    return Value(arranged(graph, value, dims), dims, value.lengths)


def shape_of(graph: Graph, value: Value, dims: Sequence[Letters]) -> list[int | Node]:
    """The shape for a reshape: numbers, -1 where one dim is symbolic, nodes where several are."""
    sizes = [[value.size(letter) for letter in dim] for dim in dims]
    symbolic = [any(isinstance(size, Extent) for size in dim) for dim in sizes]
    if sum(symbolic) == 1:
        return [-1 if unknown else prod(dim) for dim, unknown in zip(sizes, symbolic, strict=True)]
    return [product_of(graph, dim) for dim in sizes]


def product_of(graph: Graph, sizes: Sequence[int]) -> int | Node:
    """The product of some sizes: a number, or a node where one of them is symbolic."""
    whole: int | Node = prod(size for size in sizes if not isinstance(size, Extent))
    for size in sizes:
        if isinstance(size, Extent):
            whole = size.node if whole == 1 else graph.call_function(operator.mul, (size.node, whole))
    return whole


def groups_of(value: Value, letters: Sequence[Letter]) -> int:
    """The positions of some letters as a number of groups, which must stand in the graph.

    Raises:
        LoweringError: one is symbolic.
    """
    sizes = [value.size(letter) for letter in letters]
    if any(isinstance(size, Extent) for size in sizes):
        raise LoweringError("the number of groups would be a symbolic size")
    return prod(sizes)


def _permuted(graph: Graph, value: Value, wanted: Letters) -> Value:
    """The value with its dims in another order; they are split only where they must be."""
    whole = {dim[0]: dim for dim in value.dims if dim}
    order: list[Letters] = []
    rest = wanted
    while rest and rest[0] in whole and rest[: len(whole[rest[0]])] == whole[rest[0]]:
        dim = whole[rest[0]]
        order.append(dim)
        rest = rest[len(dim) :]
    if rest:
        value = split(graph, value)
        order = [(letter,) for letter in wanted]
    places = [value.dims.index(dim) for dim in order]
    empty = [place for place, dim in enumerate(value.dims) if not dim]
    node = graph.call_function(torch.permute, (value.node, [*places, *empty]))
    return Value(node, (*order, *(() for _ in empty)), value.lengths)
