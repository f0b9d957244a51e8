"""Modules that a hand-made or symbolically traced graph calls as a whole, written out as the functions that they call.

Dynamo and `torch.export` write them out by themselves. Only modules of torch's own are opened that compute the same in
training and eval, so that the graph module can still be switched between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node, Tracer

OPENED = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.Linear, nn.Bilinear, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Upsample, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
)
"""Exact types: what derives from one may compute something else. A transposed convolution asks for sizes on its way,
and cannot be traced."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Whole(Tracer):
    """Traces through every module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


def open_modules(gm: GraphModule) -> bool:
    """Write out the modules of `OPENED` that a graph calls, in place; returns whether there was one.

    A module with hooks, or with a forward of its own, stays as it is.
    """
    found = False
    for node in gm.graph.find_nodes(op="call_module"):
        module = gm.get_submodule(str(node.target))
        if type(module) not in OPENED or "forward" in vars(module) or any(getattr(module, h) for h in _HOOKS):
            continue
        given = _bound(module.forward, node)
        if given is None:
            continue
        _write_out(gm.graph, node, type(module), _Whole().trace(module), given)
        found = True
    if found:
        gm.recompile()
    return found


def _bound(forward: Callable[..., Any], node: Node) -> dict[str, Any] | None:
    """The arguments of a call by name, defaults included; None where they do not fit."""
    try:
        bound = signature(forward).bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    kinds = {parameter.kind for parameter in signature(forward).parameters.values()}
    return None if kinds & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD} else dict(bound.arguments)


def _write_out(graph: Graph, node: Node, kind: type, body: Graph, given: dict[str, Any]) -> None:
    """Put the nodes of a module's graph in the place of the node that calls it."""
    copies: dict[Node, Any] = {}
    path = str(node.target)
    stack = {"nn_module_stack": {path: (path, kind)}}  # as Dynamo has it, for the names in the report
    with graph.inserting_before(node):
        for inner in body.nodes:
            if inner.op == "placeholder":
                copies[inner] = given[str(inner.target)]
            elif inner.op == "output":
                (value,) = inner.args
                result = copies[value] if isinstance(value, Node) else value
            else:
                copies[inner] = copy = graph.node_copy(inner, lambda n: copies[n])
                copy.meta = {**stack, **node.meta}
                if inner.op == "get_attr":
                    copy.target = f"{path}.{inner.target}"
    node.replace_all_uses_with(result)
    graph.erase_node(node)
