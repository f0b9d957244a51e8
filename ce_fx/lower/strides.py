"""Give a result the strides it had as written, so that later views and layouts stay valid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import are_strides_like_channels_last_or_false
from torch.fx import Graph, Node

from ce_fx.sizes import hint


def order_of(tensor: Tensor) -> tuple[int, ...] | None:
    """The dims of a dense tensor from the slowest to the fastest; None if it is not dense and non-overlapping.

    A dim of size 1 comes behind what has its stride.
    """
    strides = [hint(stride) for stride in tensor.stride()]
    dims = sorted(range(tensor.ndim), key=lambda d: (-strides[d], hint(tensor.shape[d]) == 1, d))
    expected = 1
    for dim in reversed([d for d in dims if hint(tensor.shape[d]) != 1]):
        if strides[dim] != expected:
            return None
        expected *= hint(tensor.shape[dim])
    return tuple(dims)


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have the same strides, those of dims of size 1 aside."""
    pairs = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(hint(size) == 1 or hint(s) == hint(t) for size, s, t in pairs)


def same_format(a: Tensor, b: Tensor) -> bool:
    """Whether convolutions take both of two tensors of one shape for channels last, or neither.

    They look at the strides of dims of size 1, too, and give their results the same format.
    """
    return _channels_last(a) == _channels_last(b)


def _channels_last(tensor: Tensor) -> bool:
    shape, strides = [hint(size) for size in tensor.shape], [hint(stride) for stride in tensor.stride()]
    if tensor.ndim == 3:  # conv1d is a conv2d of images of one row
        shape, strides = [*shape[:2], 1, shape[2]], [*strides[:2], strides[2] * shape[2], strides[2]]
    return bool(are_strides_like_channels_last_or_false(shape, strides))


def with_ones(graph: Graph, node: Node, order: tuple[int, ...], ones: tuple[int, ...]) -> Node:
    """Emit a view of a value, dense in an order of dims, in which dims of size 1 have the strides of that order.

    Args:
        graph: where to emit, at its insert point.
        node: the value.
        order: its dims, the slowest first.
        ones: its dims of size 1.
    """
    moved = graph.call_function(torch.permute, (node, list(order)))
    places = sorted(order.index(d) for d in ones)
    moved = graph.call_function(torch.squeeze, (moved, places))
    for place in places:
        moved = graph.call_function(torch.unsqueeze, (moved, place))
    return graph.call_function(torch.permute, (moved, [order.index(d) for d in range(len(order))]))


def with_order(graph: Graph, node: Node, order: tuple[int, ...]) -> Node:
    """Emit a copy of a value that is dense in the given order of dims (slowest first)."""
    if order == tuple(range(len(order))):
        return graph.call_method("contiguous", (node,))
    moved = graph.call_function(torch.permute, (node, list(order)))
    dense = graph.call_method("contiguous", (moved,))
    return graph.call_function(torch.permute, (dense, [order.index(d) for d in range(len(order))]))
