"""Where a node of a graph comes from: metadata that outlives the node."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

_KEYS = ("nn_module_stack", "stack_trace", "source_fn_stack")


def provenance(node: Node) -> dict[str, Any]:
    """The metadata that a node which takes another's place takes over."""
    return {key: node.meta[key] for key in _KEYS if key in node.meta}
