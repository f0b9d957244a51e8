"""Give a result the strides it had as written, so that later views and layouts stay valid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ce_fx.sizes import hint


def order_of(tensor: Tensor) -> tuple[int, ...] | None:
    """The dims of a dense tensor from the slowest to the fastest; None if it is not dense and non-overlapping."""
    strides = [hint(stride) for stride in tensor.stride()]
    dims = sorted(range(tensor.ndim), key=lambda d: (-strides[d], d))
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


def with_order(graph: Graph, node: Node, order: tuple[int, ...]) -> Node:
    """Emit a copy of a value that is dense in the given order of dims (slowest first)."""
    if order == tuple(range(len(order))):
        return graph.call_method("contiguous", (node,))
    moved = graph.call_function(torch.permute, (node, list(order)))
    dense = graph.call_method("contiguous", (moved,))
    return graph.call_function(torch.permute, (dense, [order.index(d) for d in range(len(order))]))
