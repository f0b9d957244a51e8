"""Floats that are known only when a graph runs, as tensors: what is scaled by one is a product.

Under `dynamic=True` Dynamo gives a float of the model to the graph as a tensor without dims, and reads it:
`x * scale.item()`. In the dtype of `x` that tensor scales by the same number.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ce_fx.capture.reading import Reading
from ce_fx.provenance import provenance

_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")

_READ = "ce_fx_read"
"""Metadata of a tensor that stands for a float: the node that reads it."""

_SCALED = "ce_fx_scaled"
"""Metadata of what was scaled by a float, so that it is known from what took its place."""

_EXACT = (torch.float32, torch.float64)
"""Dtypes that a number is rounded to before it is multiplied with, as a tensor or not; with shorter ones it is not."""


def scaled_by_floats(graph: Graph) -> list[tuple[Node, Node]]:
    """(product, read float) for what is scaled by a float that is known only when the graph runs."""
    floats = [n for n in graph.find_nodes(op="call_method", target="item") if n.all_input_nodes[0].op == "placeholder"]
    return [(user, node) for node in floats for user in node.users if user.target in _PRODUCTS and len(user.args) == 2]


def floats_as_tensors(graph: Graph, reading: Reading) -> bool:
    """Scale by tensors; the graph is edited.

    Returns:
        Whether anything was changed; if so the reading is that of another graph.
    """
    changed = False
    for user, node in scaled_by_floats(graph):
        (given,) = node.all_input_nodes
        others = [each for each in user.all_input_nodes if each is not node]
        number, other = reading.fakes.get(given), reading.fakes.get(others[0]) if others else None
        if not isinstance(number, Tensor) or not isinstance(other, Tensor) or other.dtype not in _EXACT:
            continue
        if number.ndim or not number.is_floating_point() or number.requires_grad or number.device != other.device:
            continue
        with graph.inserting_after(node):  # where it is read: it may be written to behind
            tensor = graph.call_method("to", (given, other.dtype), {"copy": True})
        tensor.meta = {**provenance(node), _READ: node}
        user.replace_input_with(node, tensor)
        user.meta[_SCALED] = True
        changed = True
    return changed


def floats_again(graph: Graph) -> None:
    """Undo `floats_as_tensors` for what is still there."""
    for tensor in graph.find_nodes(op="call_method", target="to"):
        node = tensor.meta.pop(_READ, None)
        if node is None:
            continue
        for user in list(tensor.users):
            if user.meta.pop(_SCALED, False):
                user.replace_input_with(tensor, node)
        if not tensor.users:
            graph.erase_node(tensor)
