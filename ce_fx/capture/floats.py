"""Floats that are known only when a graph runs, as tensors: what is scaled by one is a product.

Under `dynamic=True` Dynamo gives a float of the model to the graph as a tensor without dims, and reads it:
`x * scale.item()`. In the dtype of `x` that tensor scales by the same number. The `eps` of a batch norm with fixed
statistics is such a float too: it is added to the variance, by a tensor, where it is otherwise added within the op.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional

from ce_fx.capture.reading import Reading
from ce_fx.provenance import provenance

_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")

_READ = "ce_fx_read"
"""Metadata of a tensor that stands for a float: the node that reads it."""

_SCALED = "ce_fx_scaled"
"""Metadata of what was scaled by a float, so that it is known from what took its place."""

_SHIFTED = "ce_fx_shifted"
"""Metadata of a batch norm that was given its variance with eps: its momentum and eps as written."""

_EXACT = (torch.float32, torch.float64)
"""Dtypes that a number is rounded to before it is multiplied with, as a tensor or not; with shorter ones it is not."""


def users_of_floats(graph: Graph) -> list[tuple[Node, Node]]:
    """(user, read float) for what takes a float that is known only when the graph runs, and would take a tensor."""
    floats = [n for n in graph.find_nodes(op="call_method", target="item") if n.all_input_nodes[0].op == "placeholder"]
    return [(user, node) for node in floats for user in node.users if _scales(user) or _normalises(user, node)]


def _scales(user: Node) -> bool:
    return user.target in _PRODUCTS and len(user.args) == 2


def _normalises(user: Node, node: Node) -> bool:
    """Whether it is a batch norm with fixed statistics, as the modules call it, and the float its eps."""
    if user.target is not functional.batch_norm or len(user.args) != 8 or user.kwargs:
        return False
    _, mean, var, *_, training, _, eps = user.args
    return isinstance(mean, Node) and isinstance(var, Node) and training is False and eps is node


def floats_as_tensors(graph: Graph, reading: Reading) -> bool:
    """Scale by tensors, and add them to variances; the graph is edited.

    Returns:
        Whether anything was changed; if so the reading is that of another graph.
    """
    changed = False
    for user, node in users_of_floats(graph):
        (given,) = node.all_input_nodes
        beside = user.args[2] if _normalises(user, node) else user.args[1 - user.args.index(node)]
        number, other = reading.fakes.get(given), reading.fakes.get(beside) if isinstance(beside, Node) else None
        if not isinstance(number, Tensor) or not isinstance(other, Tensor) or other.dtype not in _EXACT:
            continue
        if number.ndim or not number.is_floating_point() or number.requires_grad or number.device != other.device:
            continue
        with graph.inserting_after(node):  # where it is read: it may be written to behind
            tensor = graph.call_method("to", (given, other.dtype), {"copy": True})
        tensor.meta = {**provenance(node), _READ: node}
        if _scales(user):
            user.replace_input_with(node, tensor)
            user.meta[_SCALED] = True
        else:
            _shift_variance(graph, user, tensor)
        changed = True
    return changed


def _shift_variance(graph: Graph, user: Node, eps: Node) -> None:
    """Give a batch norm `var + eps`, and 0 for its eps and for a momentum, which is of training.

    The largest of a tensor and itself is that tensor, and no sum: a variance that is a leaf of a region is wanted.
    """
    x, mean, var, weight, bias, training, *written = user.args
    with graph.inserting_before(user):
        total = graph.call_function(torch.add, (var, eps))
        shifted = graph.call_function(torch.maximum, (total, total))
    total.meta, shifted.meta = provenance(user), provenance(user)
    user.args = (x, mean, shifted, weight, bias, training, 0.0, 0.0)
    user.meta[_SHIFTED] = tuple(written)


def floats_again(graph: Graph) -> None:
    """Undo `floats_as_tensors` for what is still there."""
    for norm in graph.find_nodes(op="call_function", target=functional.batch_norm):
        if _SHIFTED in norm.meta:
            x, mean, shifted, weight, bias, training, *_ = norm.args
            total = shifted.args[0]
            norm.args = (x, mean, total.args[0], weight, bias, training, *norm.meta.pop(_SHIFTED))
            for node in (shifted, total):
                if not node.users:
                    graph.erase_node(node)
    for tensor in graph.find_nodes(op="call_method", target="to"):
        node = tensor.meta.pop(_READ, None)
        if node is None:
            continue
        for user in list(tensor.users):
            if user.meta.pop(_SCALED, False):
                user.replace_input_with(tensor, node)
        if not tensor.users:
            graph.erase_node(tensor)
