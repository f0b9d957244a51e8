"""Fake tensors of no compilation's: what tells shapes and layouts for as long as it is wanted.

A fake tensor keeps its mode alive, and that all that was converted in it: weak references to a model's Parameters, for
which torch then refuses to swap them (`torch.__future__.set_swap_module_params_on_conversion`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from ce_fx.sizes import hint

_MODE = FakeTensorMode()


def blank(value: Any) -> Any:
    """Tensors of the same layout and need of a gradient; symbolic sizes are numbers, by their hints."""
    return pytree.tree_map(_blank, value)


def settle(gm: GraphModule) -> None:
    """Leave a graph's values behind once it is compiled, but for the layouts of its inputs and outputs."""
    ends = {*gm.graph.find_nodes(op="placeholder"), *gm.graph.output_node().all_input_nodes}
    for module in gm.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            value = node.meta.pop("example_value", None)
            if node in ends:
                node.meta["example_value"] = blank(value)


def _blank(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return hint(value)
    if not isinstance(value, Tensor):
        return value
    shape, strides = [hint(size) for size in value.shape], [hint(stride) for stride in value.stride()]
    with _MODE, torch.no_grad():
        fake = torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)
    return fake.requires_grad_(value.requires_grad)
