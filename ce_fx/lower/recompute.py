"""Regions that keep no intermediate for their backward: their nodes become the body of an activation checkpoint.

The body is called by torch's own op for checkpoints, as Dynamo writes those of a model: AOTAutograd tags its nodes to
be recomputed, and what runs a graph node by node takes `torch.utils.checkpoint` in its place (Chen et al., arXiv
1604.06174, with the region as the segment).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.autocast_mode import _enter_autocast
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import checkpoint

from ce_fx.provenance import provenance

PREFIX = "ce_fx_recomputed_"
OPTIONS: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
"""A multilinear region draws no random numbers."""


def recompute(gm: GraphModule, nodes: Sequence[Node], result: Node) -> Node:
    """Make some nodes the body of a checkpoint; they are taken out of the graph.

    Args:
        gm: the module that they belong to.
        nodes: in graph order.
        result: the only one whose value is read outside.

    Returns:
        The node that takes the result's place.
    """
    graph = gm.graph
    inside = set(nodes)
    inputs = list(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside))
    body = Graph()
    copies: dict[Node, Node] = {}
    for number, node in enumerate(inputs):
        copies[node] = body.placeholder(f"leaf_{number}")
        copies[node].meta = dict(node.meta)
    for node in nodes:
        copies[node] = body.node_copy(node, lambda n: copies[n])
    body.output((copies[result],))
    name = next(name for n in range(len(nodes) + len(graph.nodes)) if not hasattr(gm, name := f"{PREFIX}{n}"))
    gm.add_submodule(name, GraphModule(gm, body))
    with graph.inserting_before(nodes[-1]):
        target = graph.get_attr(name)
        target.meta = {}
        call = graph.call_function(torch.ops.higher_order.tag_activation_checkpoint, (target, *inputs), dict(OPTIONS))
        value = graph.call_function(operator.getitem, (call, 0))
    call.meta, value.meta = provenance(result), dict(result.meta)
    for key in ("val", "example_value"):
        if key in result.meta:
            call.meta[key] = (result.meta[key],)
    result.replace_all_uses_with(value, delete_user_cb=lambda user: user not in inside)
    for node in reversed(nodes):
        graph.erase_node(node)
        node.meta.clear()  # a graph remembers the names of its erased nodes, and so these
    return value


def has_bodies(gm: GraphModule) -> bool:
    """Whether something in a module is recomputed because we made it so."""
    return any(name.startswith(PREFIX) for name, _ in gm.named_children())


def drop_bodies(gm: GraphModule) -> None:
    """Take from a module the bodies that its graph does not call any more."""
    for name in [name for name, _ in gm.named_children() if name.startswith(PREFIX)]:
        gm.delete_submodule(name)


def take_bodies(gm: GraphModule, other: GraphModule) -> None:
    """Give a module the bodies that another one has got."""
    for name, body in other.named_children():
        if name.startswith(PREFIX):
            gm.add_submodule(name, body)


def recomputed(module: GraphModule, *leaves: Tensor) -> Tensor:
    """What a module gives, with nothing kept for the backward but its leaves."""
    result: Tensor = checkpoint(module.forward, *leaves, **OPTIONS, early_stop=may_stop(module))
    return result


def may_stop(body: GraphModule) -> bool:
    """Whether a recomputation may end as soon as it has all that was saved: by raising, so that autocast stays open."""
    return not body.graph.find_nodes(op="call_function", target=_enter_autocast)


def is_alone(nodes: Sequence[Node], result: Node) -> bool:
    """Whether nothing outside reads the value of a node but the result's."""
    inside = set(nodes)
    return all(user in inside for node in nodes if node is not result for user in node.users)


def saved_bytes(module: GraphModule, leaves: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward of a module, beside its leaves and its result.

    Args:
        module: of torch functions.
        leaves: values of its inputs, real or fake, that need a gradient where the true ones do.
    """
    kept: dict[object, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    modes = [leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor)]
    fake = modes[0] if modes else nullcontext()  # for the constants that the module makes
    with fake, torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = module.forward(*leaves)
    for tensor in (*leaves, result):
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(kept.values())
