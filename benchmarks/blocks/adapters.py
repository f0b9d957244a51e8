"""Adapters by the `peft` package, and LyCORIS's rebuilt kernel, on a convolution and on a linear layer."""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks.block import Bind, Block, Run, Shapes, over


class Holder(nn.Module):
    """A model of one layer, for `peft` to wrap."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        return self.layer(x)


def base_layer(kind: str, small: bool) -> nn.Module:
    """What is adapted: a 3x3 convolution of 320 channels, or a linear layer of 1024."""
    if kind == "conv":
        channels = 8 if small else 320
        return nn.Conv2d(channels, channels, 3, padding=1)
    features = 16 if small else 1024
    return nn.Linear(features, features)


ADAPTED: dict[str, tuple[Shapes, Shapes]] = {
    "conv": (((2, 320, 32, 32),), ((2, 8, 6, 5),)),
    "linear": (((4, 256, 1024),), ((2, 3, 16),)),
}
"""Shapes of x, at full size and small."""


def config(kind: str, small: bool) -> Any:
    """A configuration of `peft`; rank 16, or 2 where it is small."""
    import peft

    rank = 2 if small else 16
    common: dict[str, Any] = {"target_modules": ["layer"]}
    both: dict[str, Any] = {"decompose_both": True, "decompose_factor": 4 if small else 8}
    makers: dict[str, Callable[[], Any]] = {
        "lora": lambda: peft.LoraConfig(r=rank, lora_alpha=2 * rank, **common),
        "dora": lambda: peft.LoraConfig(r=rank, lora_alpha=2 * rank, use_dora=True, **common),
        "loha": lambda: peft.LoHaConfig(r=rank, alpha=2 * rank, **common),
        "loha effective": lambda: peft.LoHaConfig(r=rank, alpha=2 * rank, use_effective_conv2d=True, **common),
        "lokr": lambda: peft.LoKrConfig(r=rank, alpha=2 * rank, **common),
        "lokr both": lambda: peft.LoKrConfig(r=1 if small else 3, alpha=4, use_effective_conv2d=True, **both, **common),
        "hira": lambda: peft.HiraConfig(r=rank, **common),
        "ia3": lambda: peft.IA3Config(feedforward_modules=[], **common),
        "ia3 feedforward": lambda: peft.IA3Config(feedforward_modules=["layer"], **common),
    }
    return makers[kind]()


def adapted(layer: str, kinds: tuple[str, ...], small: bool) -> nn.Module:
    """A layer with one adapter or several at once; the base is frozen, the adapters are not what they start as."""
    from peft import get_peft_model

    first, *more = (config(kind, small) for kind in kinds)
    model = get_peft_model(Holder(base_layer(layer, small)), first)
    for number, each in enumerate(more):
        model.add_adapter(f"more{number}", each)
    model.base_model.set_adapter(["default", *(f"more{number}" for number in range(len(more)))])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "base_layer" not in name:
                parameter.requires_grad_(True)
                if "ia3" in name or "magnitude" in name:
                    parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
                else:
                    parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.2)
    return model


def like(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution or linear layer with other weights."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight, bias)


def kernel(tuner: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an adapted layer, merged; gradients are those of the adapter."""
    base = tuner.get_base_layer()
    weight, bias = base.weight, base.bias
    for name in tuner.active_adapters:
        if hasattr(tuner, "ia3_l"):
            scale = tuner.ia3_l[name]
            weight = (
                weight * scale.transpose(0, 1) if weight.dim() == 4 and not tuner.is_feedforward else weight * scale
            )
            bias = bias if tuner.is_feedforward else bias * scale.flatten()
        elif hasattr(tuner, "hira_A"):
            weight = weight + base.weight * tuner.get_delta_weight(name)
        elif name in getattr(tuner, "lora_magnitude_vector", {}):
            weight = weight + tuner.get_delta_weight(name)
            norm = weight.detach().flatten(1).norm(dim=1)
            scale = tuner.lora_magnitude_vector[name].weight.flatten() / norm
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        else:
            weight = weight + tuner.get_delta_weight(name)
    return weight, bias


def adapter_merged(model: Any, x: Tensor) -> Tensor:
    """One kernel, built in every call."""
    tuner = model.base_model.model.layer
    return like(tuner.get_base_layer(), x, *kernel(tuner))


def adapter_bypass(model: Any, x: Tensor) -> Tensor:
    """The base and a thin pair beside it, as LoRA is written, without the wrapper's bookkeeping."""
    tuner = model.base_model.model.layer
    base = tuner.get_base_layer()
    y = like(base, x, base.weight, base.bias)
    for name in tuner.active_adapters:
        y = y + tuner.lora_B[name](tuner.lora_A[name](x)) * tuner.scaling[name]
    return y


@torch.no_grad()
def adapter_once(model: Any) -> Run:
    """What `peft` makes when it is asked to merge."""
    return copy.deepcopy(model).merge_and_unload().eval()


class LyCORIS(nn.Module):
    """A convolution and a low-rank one beside it, whose full kernel is rebuilt in every call (LyCORIS's LoCon).

    Args:
        channels: in and out.
        rank: of the update.
        subtract: compute the update as (W + update) - W, as some versions do.
    """

    def __init__(self, channels: int, rank: int, subtract: bool = False) -> None:
        super().__init__()
        self.base = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, channels, 3, 3) / (9 * channels) ** 0.5)
        self.up = nn.Parameter(torch.randn(channels, rank, 1, 1) / rank**0.5)
        self.scale = 0.5
        self.subtract = subtract

    def update(self) -> Tensor:
        """The low-rank kernel."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return product.reshape(self.base.weight.shape) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Both convolutions."""
        update = self.update()
        if self.subtract:
            update = (self.base.weight + update) - self.base.weight
        return self.base(x) + F.conv2d(x, update, None, padding=1)


def lycoris_bypass(layer: LyCORIS, x: Tensor) -> Tensor:
    """The thin pair."""
    return layer.base(x) + F.conv2d(F.conv2d(x, layer.down, padding=1), layer.up) * layer.scale


def lycoris_merged(layer: LyCORIS, x: Tensor) -> Tensor:
    """One kernel."""
    return F.conv2d(x, layer.base.weight + layer.update(), layer.base.bias, padding=1)


def adapters() -> list[Block]:
    """Adapters through `peft`, and one that runs two full convolutions."""
    kinds = {
        "lora": ("lora",),
        "dora": ("dora",),
        "loha": ("loha",),
        "lokr": ("lokr",),
        "lokr, both decomposed": ("lokr both",),
        "hira": ("hira",),
        "ia3": ("ia3",),
        "ia3, feedforward": ("ia3 feedforward",),
        "two loras": ("lora", "lora"),
    }
    found = []
    for layer, (shapes, small) in ADAPTED.items():
        here = {**kinds, "loha, effective": ("loha effective",)} if layer == "conv" else kinds
        for name, parts in here.items():
            orders: dict[str, Bind] = {"merged": over(adapter_merged)}
            if set(parts) == {"lora"}:
                orders["bypass"] = over(adapter_bypass)
            make = partial(adapted, layer, parts)
            block = Block(f"adapter/{name}/{layer}", make, shapes, small, orders, {"merged": adapter_once})
            found.append(block)
    shapes, small = ADAPTED["conv"]
    orders = {"bypass": over(lycoris_bypass), "merged": over(lycoris_merged)}
    for name, subtract in (("lycoris", False), ("lycoris, W subtracted", True)):
        make = partial(_lycoris, subtract)
        block = Block(f"adapter/{name}/conv", make, shapes, small, orders, {"merged": _lycoris_once})
        found.append(block)
    return found


def _lycoris(subtract: bool, small: bool) -> nn.Module:
    return LyCORIS(8, 2, subtract) if small else LyCORIS(320, 16, subtract)


@torch.no_grad()
def _lycoris_once(layer: LyCORIS) -> Run:
    weight = layer.base.weight + layer.update()
    return lambda x: F.conv2d(x, weight, layer.base.bias, padding=1)
