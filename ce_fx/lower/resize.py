"""A resize that a plan has as products with one matrix per axis, as the one op that it is.

Along each axis a resize is a matrix of a few entries per row. Planning needs the matrices, since a product with one
commutes with the channel work around it; what the plan leaves next to each other is better done by the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ce_fx.algebra import Index
from ce_fx.algebra.derived import Derived
from ce_fx.lower.value import Letter, Letters, Value, arranged
from ce_fx.plan.network import Network
from ce_fx.plan.tree import Tree, step_of, subset_of

_MARK = "ce_fx_resize"


@dataclass(frozen=True)
class Resize:
    """One axis of a resize: from an index to another one, and what the op is called with."""

    ins: Index
    out: Index
    mode: str
    axes: int
    align: bool | None


def mark(node: Node, leaf: Derived) -> None:
    """Remember of an emitted leaf that it is the matrix of a resize, if by the ratio of the sizes."""
    if leaf.kind == "resize":
        mode, axes, size, out, align, factor = leaf.params
        if factor is None or size * factor == out:
            node.meta[_MARK] = (mode, axes, align)


def resized(tree: Tree, network: Network, values: Sequence[Value]) -> tuple[Tree, tuple[Resize, ...]] | None:
    """What a tree resizes, and along which axes: as many as the op has, next to each other. Else None."""
    found: list[Resize] = []
    while not isinstance(tree, int):
        first, second = tree
        leaf, rest = (first, second) if _is_marked(first, values) else (second, first)
        axis = _axis(leaf, rest, network, values)
        if axis is None or (
            found and (axis.mode, axis.axes, axis.align) != (found[0].mode, found[0].axes, found[0].align)
        ):
            return None
        found.append(axis)
        tree = rest
        if len(found) == axis.axes:
            return tree, tuple(found)
    return None


def before(axes: Sequence[Resize], wish: Letters) -> Letters:
    """The order of letters that is best handed to the resize: its axes last, or before the channels."""
    outs: dict[Letter, Letter] = {axis.out: axis.ins for axis in axes}
    if _channels_last(axes, wish):
        return tuple(outs.get(letter, letter) for letter in wish)
    return (*(letter for letter in wish if letter not in outs), *(axis.ins for axis in _by_wish(axes, wish)))


def interpolate(graph: Graph, value: Value, axes: Sequence[Resize], wish: Letters) -> Value:
    """Emit the resize of a value; its other letters are batch and channels, in the order that is wished for.

    They are moved before the resize, which is where the value is smaller, mostly.
    """
    axes = _by_wish(axes, wish)
    ins, outs = tuple((axis.ins,) for axis in axes), tuple((axis.out,) for axis in axes)
    rank = {letter: n for n, letter in enumerate(wish)}
    others = sorted((x for x in value.letters if (x,) not in ins), key=lambda x: rank.get(x, len(rank)))
    n = len(axes)
    last = _channels_last(axes, wish)
    batch = tuple(x for x in others if last and rank.get(x, len(rank)) < rank[axes[0].out])
    channels = tuple(x for x in others if x not in batch)
    image = arranged(graph, value, [batch, *ins, channels] if last else [batch, channels, *ins])
    image = graph.call_method("contiguous", (image,))
    if last:
        image = graph.call_function(torch.permute, (image, [0, n + 1, *range(1, n + 1)]))
    align = {} if axes[0].align is None else {"align_corners": axes[0].align}
    kwargs: dict[str, Any] = {"size": [axis.out.size for axis in axes], "mode": axes[0].mode, **align}
    node = graph.call_function(torch.nn.functional.interpolate, (image,), kwargs)
    if not last:
        return Value(node, (batch, channels, *outs), value.lengths)
    node = graph.call_function(torch.permute, (node, [0, *range(2, n + 2), 1]))
    return Value(node, (batch, *outs, channels), value.lengths)


def _channels_last(axes: Sequence[Resize], wish: Letters) -> bool:
    """Whether torch has a kernel for channels that lie next to each other, and they are wished for."""
    outs = {axis.out for axis in axes}
    return len(axes) == 2 and outs <= set(wish) and wish[-1] not in outs


def _by_wish(axes: Sequence[Resize], wish: Letters) -> tuple[Resize, ...]:
    rank = {letter: n for n, letter in enumerate(wish)}
    return tuple(sorted(axes, key=lambda axis: rank.get(axis.out, len(rank))))


def _is_marked(tree: Tree, values: Sequence[Value]) -> bool:
    return isinstance(tree, int) and _MARK in values[tree].node.meta


def _axis(leaf: Tree, rest: Tree, network: Network, values: Sequence[Value]) -> Resize | None:
    """The axis that a step resizes: its only sum is over the rows of the matrix."""
    if not isinstance(leaf, int) or not _is_marked(leaf, values):
        return None
    dims = values[leaf].dims
    step = step_of(network, subset_of(rest), subset_of(leaf))
    if list(map(len, dims)) != [1, 1]:  # to or from one position, which has no letter
        return None
    if step.joined or step.right_axes or step.batch or len(step.contracted) != 1:
        return None
    (ins,), (out,) = dims
    if not isinstance(ins, Index) or not isinstance(out, Index) or step.contracted != (ins,):
        return None
    return Resize(ins, out, *values[leaf].node.meta[_MARK])
