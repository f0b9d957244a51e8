"""Take a stretch of a graph out as a module of its own, and put another in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ce_fx.lower.precision import under_autocast
from ce_fx.provenance import provenance
from ce_fx.sizes import hint


def extract(
    gm: GraphModule,
    nodes: Sequence[Node],
    leaves: Sequence[Node],
    numbers: Mapping[Node, Any],
    autocast: tuple[torch.device, torch.dtype] | None = None,
) -> GraphModule:
    """The given nodes as a module of their own: its inputs are the leaves, its output the last node.

    Sub-modules and attributes that the nodes name are those of `gm`, by reference. A size that the nodes are handed
    (`x.size(0)`, a symbolic size) becomes a number, by its hint; its value is in `numbers`. A tensor that is no leaf is
    read for its shape or dtype only (`x.type_as(y)`): any such tensor will do. Where the nodes run under autocast, of a
    device to a dtype, so do their copies.
    """
    graph = Graph()
    copies: dict[Node, Node] = {leaf: graph.placeholder(f"leaf_{n}") for n, leaf in enumerate(leaves)}

    def read(node: Node) -> Any:
        value = numbers[node] if node not in copies else None
        if isinstance(value, Tensor):
            like: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
            copies[node] = graph.call_function(torch.empty, (list(map(hint, value.shape)),), like)
        return copies[node] if node in copies else _number(value)

    for node in nodes:
        copies[node] = graph.node_copy(node, read)
    graph.output(copies[nodes[-1]])
    if autocast is not None:
        under_autocast(graph, *autocast, enabled=True)
    return GraphModule(gm, graph)


def sizes_of(nodes: Sequence[Node], leaves: Sequence[Node]) -> tuple[Node, ...]:
    """What the nodes read besides their leaves and each other: sizes."""
    inside = {*nodes, *leaves}
    return tuple(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside))


def _number(value: Any) -> Any:
    """A size, or a tuple of sizes, as it is or by its hint."""
    return tuple(map(_number, value)) if isinstance(value, tuple) else hint(value)


def inline(
    candidate: GraphModule, leaves: Sequence[Node], output: Node, region: Sequence[Node]
) -> tuple[tuple[Node, ...], Node]:
    """Put a module's nodes in place of a region: before its output node, which they replace.

    Args:
        candidate: a module of torch functions only; its inputs are the leaves, in order.
        leaves: nodes of the graph that `output` is in.
        output: the node whose value is replaced.
        region: the region's nodes in graph order, `output` last; erased.

    Returns:
        The new nodes, in order, with metadata; and the one that gives the result.
    """
    graph = output.graph
    copies: dict[Node, Node] = dict(zip(candidate.graph.find_nodes(op="placeholder"), leaves, strict=True))
    keys = [key for key in ("example_value", "val") if key in output.meta]
    fakes = {leaf: leaf.meta[key] for leaf in leaves for key in ("val", "example_value") if key in leaf.meta}
    mode = next((value.fake_mode for value in fakes.values() if isinstance(value, FakeTensor)), None)
    source = next((node for node in reversed(region) if "nn_module_stack" in node.meta), output)
    new: list[Node] = []
    result = output
    with graph.inserting_before(output):
        for node in candidate.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                result = copies[node.args[0]]
                continue
            copy = graph.node_copy(node, lambda n: copies[n])
            copy.meta = provenance(source)
            copies[node] = copy
            new.append(copy)
            value = None if mode is None else fake_value(copy, fakes, mode)
            if value is not None:
                fakes[copy] = value
            if isinstance(value, Tensor | torch.SymInt):
                copy.meta.update(dict.fromkeys(keys, value))
    replace_region(output, result, region)
    return tuple(new), result


def replace_region(output: Node, new: Node, region: Sequence[Node]) -> None:
    """Hand all uses of a region's value to another node, and erase the region's nodes (in graph order).

    What others read as well stays: a split, of which each region takes a part.
    """
    output.replace_all_uses_with(new)
    for node in reversed(region):
        if not node.users:
            output.graph.erase_node(node)
            node.meta.clear()  # a graph remembers the names of its erased nodes, and so these


def copy_of(gm: GraphModule) -> GraphModule:
    """A graph module with a graph of its own over the same attributes; metadata is kept, by reference."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    output = graph.graph_copy(gm.graph, copies, return_output_node=True)
    for original, twin in copies.items():
        if hasattr(original, "_dynamo_source"):  # AOTAutograd wants it of every input
            twin._dynamo_source = original._dynamo_source
    if output is not None:  # before the module is made: a graph of inputs only has no code without it
        value, old = output  # type: ignore[misc]
        graph.output(value).meta = dict(old.meta)
    copy = GraphModule(gm, graph, gm.__class__.__name__)
    copy.meta.update(gm.meta)
    graph._codegen = gm.graph._codegen
    copy.recompile()
    return copy


def fake_value(node: Node, fakes: Mapping[Node, Any], mode: FakeTensorMode) -> Any:
    """The fake value, symbolic size or mode that a node of torch functions or tensor methods gives, from its inputs'.

    Returns:
        The value, or None where an input has none.
    """
    if any(n not in fakes for n in node.all_input_nodes):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: fakes[n])
    with mode, torch.no_grad(), enable_python_dispatcher():  # else some ops fix symbolic sizes to their hints
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
