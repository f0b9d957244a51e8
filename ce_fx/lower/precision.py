"""Under autocast: the dtypes in which a rewritten stretch runs.

As written every product casts what it is given to autocast's dtype. What replaces it runs with autocast off: what
depends on data is cast where it comes in, and products of weights only are made as the weights are, and cast once. So
a merged kernel is rounded as often as a kernel of the model's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import Graph, GraphModule, Node


def under_autocast(graph: Graph, device: torch.device, dtype: torch.dtype, enabled: bool) -> None:
    """Put a graph of torch functions between an entry and an exit of autocast, as Dynamo writes them."""
    inputs = graph.find_nodes(op="placeholder")
    with graph.inserting_after(inputs[-1]):
        mode = graph.call_function(_enter_autocast, (device.type, dtype, enabled, None))
    with graph.inserting_before(graph.output_node()):
        graph.call_function(_exit_autocast, (mode,))


def in_precision(module: GraphModule, leaves: Sequence[Tensor], weights: Collection[int], dtype: torch.dtype) -> None:
    """Make a module run in the dtypes that autocast would give its features.

    Args:
        module: of torch functions, without any casts; it is changed.
        leaves: values of its inputs, real or fake.
        weights: numbers of the inputs that depend on weights only.
        dtype: autocast's.
    """
    graph = module.graph
    inputs = graph.find_nodes(op="placeholder")
    wide = {leaf.dtype for leaf in leaves} - {dtype}
    full = next(iter(wide), torch.float32)
    features: set[Node] = set()
    casts: dict[tuple[Node, torch.dtype], Node] = {}

    def cast(node: Node, to: torch.dtype) -> Node:
        if (node, to) not in casts:
            after = inputs[-1] if node.op == "placeholder" else node
            with graph.inserting_after(after):
                casts[node, to] = graph.call_method("to", (node, to))
        return casts[node, to]

    for number, (node, leaf) in enumerate(zip(inputs, leaves, strict=True)):
        wanted = full if number in weights else dtype
        users = list(node.users)
        new = node if leaf.dtype == wanted else cast(node, wanted)
        for user in users:
            user.replace_input_with(node, new)
        if number not in weights:
            features.update((node, new))
    new_casts = set(casts.values())
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or node in new_casts:
            continue
        if not node.all_input_nodes:
            node.kwargs = {**node.kwargs, **({"dtype": full} if "dtype" in node.kwargs else {})}
        elif features.intersection(node.all_input_nodes) and not _is_size(node):
            for operand in list(node.all_input_nodes):
                if operand not in features and not _is_size(operand):
                    node.replace_input_with(operand, cast(operand, dtype))
            features.add(node)
    output = graph.output_node()
    (last,) = output.all_input_nodes
    if last not in features:
        output.args = (cast(last, dtype),)
    under_autocast(graph, leaves[0].device, dtype, enabled=False)
    module.recompile()


def rounded(device: torch.device, dtype: torch.dtype) -> frozenset[str]:
    """Which of "conv" and "matmul" may round operands of float32 to fewer bits on a device, by torch's settings.

    On cards with TensorFloat-32 convolutions do and matmuls do not, unless the user has set it otherwise; an operand
    keeps 11 bits of 24 then. Other dtypes are never rounded.
    """
    if dtype not in (torch.float32, torch.complex64):
        return frozenset()
    backends: Any = torch.backends  # its flags are properties that a type checker does not see
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < _TF32:
            return frozenset()
        flags = {"conv": backends.cudnn.conv, "matmul": backends.cuda.matmul}
    elif device.type == "cpu":
        flags = {"conv": backends.mkldnn.conv, "matmul": backends.mkldnn.matmul}
    else:
        return frozenset()
    return frozenset(op for op, flag in flags.items() if flag.fp32_precision in ("tf32", "bf16"))


_TF32 = (8, 0)  # the first capability with it: Ampere


def is_cast(node: Any) -> bool:
    """Whether an ATen node casts an input of its graph: autocast does so, too, and nothing is read of it."""
    names = ("aten::_to_copy", "aten::to")
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name in names and node.args[0].op == "placeholder"


def _is_size(node: Node) -> bool:
    """Whether a node gives a symbolic size, or computes with some."""
    if node.op == "call_method":
        return node.target == "size"
    return bool(node.all_input_nodes) and node.op == "call_function" and all(map(_is_size, node.all_input_nodes))
