"""Emit leaves that the graph does not hold but that follow from it; see `ce_fx.algebra.derived`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node

from ce_fx.algebra.derived import Derived

Maker: TypeAlias = "Callable[[Graph, Sequence[Node], Sequence[Any], Mapping[str, Any]], Node]"
"""`maker(graph, sources, params, like)`; `like` holds the dtype and the device of a constant."""


def derive(graph: Graph, leaf: Derived, inputs: Sequence[Node], like: Mapping[str, Any]) -> Node:
    """Emit a derived leaf, from the inputs whose numbers are its sources."""
    return KINDS[leaf.kind](graph, [inputs[source] for source in leaf.sources], leaf.params, like)


def _rsqrt(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    """`1 / sqrt(x + eps)`."""
    shifted = graph.call_function(torch.add, (sources[0], params[0]))
    return graph.call_function(torch.rsqrt, (shifted,))


def _ones(graph: Graph, sources: Sequence[Node], params: Sequence[Any], like: Mapping[str, Any]) -> Node:
    return graph.call_function(torch.ones, (list(params),), dict(like))


KINDS: dict[str, Maker] = {"rsqrt": _rsqrt, "ones": _ones}

POSITIVE = {"rsqrt"}
"""Kinds whose sources must be positive."""
