"""What a graph is read on: fake copies of its inputs and of the tensors that it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ce_fx.sizes import size_or_symbol


def left_alone(tensors: Iterable[tuple[Any, Any]]) -> dict[Any, str]:
    """Those values that are tensors of another kind than plain ones, with what they are.

    Nothing is known about them: a subclass may give any op another meaning, or lack the ops that a rewrite emits.
    """
    kinds = [(key, _kind(value)) for key, value in tensors if isinstance(value, Tensor)]
    return {key: f"a {kind} is left alone" for key, kind in kinds if kind is not None}


def _kind(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "quantised tensor"
    kind: Any = type(tensor)
    plain = kind in (Tensor, FakeTensor) or (
        kind.__torch_function__ is torch._C._disabled_torch_function_impl
        and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    )
    return None if plain else f"tensor of class {kind.__name__}"


def fake_mode(gm: GraphModule, example_inputs: Sequence[Any]) -> FakeTensorMode:
    """The fake mode that the graph's own values are in, else a new one."""
    metas = (v for n in gm.graph.nodes for v in (n.meta.get("example_value"), n.meta.get("val")))
    for value in (*example_inputs, *metas):
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def fake_input(mode: FakeTensorMode, value: Any, example: Any) -> Any:
    """What a placeholder is read with: a fake copy of what its node promises, else of the example."""
    value = example if value is None else value
    return fake_copy(mode, value) if isinstance(value, Tensor) else value


def fake_copy(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A fake tensor of the same shape, strides, dtype, device and need of a gradient, with memory of its own."""
    with mode, torch.no_grad():
        if tensor.layout is not torch.strided:
            return mode.from_tensor(tensor) if not isinstance(tensor, FakeTensor) else tensor
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    if not tensor.requires_grad:
        return copy
    with mode, torch.enable_grad():  # no leaf: it may be written to in place
        clone = copy.requires_grad_().clone()
        if _sizes(clone.stride()) == _sizes(tensor.stride()) or 0 in _sizes(tensor.shape):
            return clone
        # A clone of what has gaps or repeats itself in memory has neither.
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        memory = torch.empty(extent, dtype=tensor.dtype, device=tensor.device, requires_grad=True)
        return memory.clone().as_strided(tensor.shape, tensor.stride())


def _sizes(sizes: Iterable[Any]) -> tuple[int | str, ...]:
    return tuple(map(size_or_symbol, sizes))


def plain_attributes(gm: GraphModule) -> dict[str, Tensor]:
    """Tensors that the graph reads and that are neither parameters nor buffers."""
    found: dict[str, Tensor] = {}
    for node in gm.graph.find_nodes(op="get_attr"):
        value: Any = gm
        for part in str(node.target).split("."):
            value = getattr(value, part, None)
        if isinstance(value, Tensor):
            found[str(node.target)] = value
    return found


def padded(values: Sequence[Any], placeholders: Sequence[Node]) -> list[Any]:
    """The inputs, and the defaults of placeholders that get none."""
    defaults = [node.args[0] if node.args else None for node in placeholders[len(values) :]]
    return [*values[: len(placeholders)], *defaults]
