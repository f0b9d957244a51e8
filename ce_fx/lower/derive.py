"""Emit leaves that the graph does not hold but that follow from it; see `ce_fx.algebra.derived`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node
from torch.nn import functional

from ce_fx.algebra.derived import Derived
from ce_fx.lower.resize import mark

Maker: TypeAlias = "Callable[[Graph, Sequence[Node], Sequence[Any], Mapping[str, Any]], Node]"
"""`maker(graph, sources, params, like)`; `like` holds the dtype and the device of a constant."""


def derive(graph: Graph, leaf: Derived, inputs: Sequence[Node], like: Mapping[str, Any]) -> Node:
    """Emit a derived leaf, from the inputs whose numbers are its sources."""
    node = KINDS[leaf.kind](graph, [inputs[source] for source in leaf.sources], leaf.params, like)
    mark(node, leaf)
    return node


def _rsqrt(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """`1 / sqrt(x + eps)`."""
    shifted = graph.call_function(torch.add, (sources[0], params[0]))
    return graph.call_function(torch.rsqrt, (shifted,))


def _sqrt(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """`sqrt(x + eps)`."""
    return graph.call_function(torch.sqrt, (graph.call_function(torch.add, (sources[0], params[0])),))


def _reciprocal(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    return graph.call_function(torch.reciprocal, (sources[0],))


def _ones(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    return graph.call_function(torch.ones, (list(params),), dict(like))


def _full(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """A constant kernel: `params` are its size and its value."""
    size, value = params
    return graph.call_function(torch.full, ([size], value), dict(like))


def _steps(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """A piecewise constant vector: `params` are its runs, each a value and a length."""
    runs = [graph.call_function(torch.full, ([length], value), dict(like)) for value, length in params]
    return graph.call_function(torch.cat, (runs,))


def _eye(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    return graph.call_function(torch.eye, tuple(params), dict(like))


def _resize(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """The matrix [in, out] of a resize along one axis: the resized identity.

    Its rows are channels, with as many axes as the op had, of one position each: torch's kernels for one and for two
    axes do not always read the same neighbour.
    """
    mode, axes, size, out, align, factor = params
    ones = [1] * (axes - 1)
    kwargs: dict[str, Any] = {"size": [*ones, out]} if factor is None else {"scale_factor": [*map(float, ones), factor]}
    kwargs |= {"mode": mode} if align is None else {"mode": mode, "align_corners": align}
    units = _identity(graph, [1, size, *ones, size], like)
    return _matrix(graph, graph.call_function(functional.interpolate, (units,), kwargs), (size, out))


def _adaptive_avg_pool(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """The matrix [in, out] of an adaptive average pool along one axis."""
    size, out = params
    pooled = graph.call_function(functional.adaptive_avg_pool1d, (_identity(graph, [1, size, size], like), out))
    return _matrix(graph, pooled, (size, out))


def _avg_pool(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """The matrix [in, out] of an average pool along one axis."""
    size, *rest = params
    pooled = graph.call_function(functional.avg_pool1d, (_identity(graph, [1, size, size], like), *rest))
    return _matrix(graph, pooled, (size, -1))


def _identity(graph: Graph, shape: Sequence[int], like: Mapping[str, Any]) -> Node:
    eye = graph.call_function(torch.eye, (shape[-1],), dict(like))
    return graph.call_function(torch.reshape, (eye, list(shape)))


def _matrix(graph: Graph, node: Node, shape: Sequence[int]) -> Node:
    return graph.call_function(torch.reshape, (node, list(shape)))


def _part(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """Some positions of one dim: a view, unless the leaf has to be reshaped first."""
    shape, dim, start, length, step = params
    node = sources[0] if shape is None else _matrix(graph, sources[0], shape)
    if step == 1:
        return graph.call_function(torch.narrow, (node, dim, start, length))
    where = (*(slice(None) for _ in range(dim)), slice(start, start + step * (length - 1) + 1, step))
    return graph.call_function(operator.getitem, (node, where))


KINDS: dict[str, Maker] = {
    "part": _part,
    "rsqrt": _rsqrt,
    "sqrt": _sqrt,
    "reciprocal": _reciprocal,
    "ones": _ones,
    "full": _full,
    "steps": _steps,
    "eye": _eye,
    "resize": _resize,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "avg_pool": _avg_pool,
}

POSITIVE = {"rsqrt", "sqrt", "reciprocal"}
"""Kinds that are tried on positive sources: variances, and norms that are not nearly zero."""
