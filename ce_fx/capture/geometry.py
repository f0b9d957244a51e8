"""Strides, paddings and dilations that Dynamo takes for symbols, as the numbers that they are.

Under `dynamic=True` an integer that reaches a graph from outside is symbolic, and what a layer computes before a graph
break, its padding among the rest, reaches the graph behind it so. A model's geometry does not vary from call to call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn import functional

from ce_fx.sizes import hint, known

_GEOMETRIC = {
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
}
"""What takes integers for nothing but its geometry."""


def symbols_of_geometry(graph: Graph, example_inputs: Sequence[Any]) -> dict[Node, SymInt]:
    """Symbolic integers among the inputs that are the geometry of layers and nothing else, and no size of a tensor.

    Args:
        graph: one of Dynamo's.
        example_inputs: one value for each placeholder, in order.
    """
    shapes: list[Any] = [size for value in example_inputs if isinstance(value, Tensor) for size in value.shape]
    sizes = {symbol for size in shapes if isinstance(size, SymInt) for symbol in size.node.expr.free_symbols}
    given = zip(graph.find_nodes(op="placeholder"), example_inputs, strict=False)
    return {
        node: value
        for node, value in given
        if isinstance(value, SymInt)
        and known(value)
        and sizes.isdisjoint(value.node.expr.free_symbols)
        and node.users
        and all(user.target in _GEOMETRIC for user in node.users)
    }


def with_numbers(found: Mapping[Node, SymInt]) -> bool:
    """Put the present values in place of symbolic integers; the graph is edited. Returns whether there were any."""
    numbers = {node: hint(value) for node, value in found.items()}
    for user in {user: None for node in numbers for user in node.users}:
        user.args, user.kwargs = map_arg((user.args, user.kwargs), lambda node: numbers.get(node, node))
    return bool(numbers)
