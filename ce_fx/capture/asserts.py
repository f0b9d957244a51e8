"""Assertions about a value's dtype, device and layout, which `torch.export` writes in front of every `.to`."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node


def asserted(graph: Graph) -> list[Node]:
    """The assertions about values that the graph computes: reading the graph has proved them.

    Those about its inputs are not among them: they say what it may be called with.
    """
    found = graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default)
    return [node for node in found if all(n.op not in ("placeholder", "get_attr") for n in node.all_input_nodes)]


def without_asserts(graph: Graph) -> bool:
    """Drop them: each is a second reader of its value, and would end a region there.

    Returns:
        Whether there were any.
    """
    found = asserted(graph)
    for node in found:
        graph.erase_node(node)
    return bool(found)
