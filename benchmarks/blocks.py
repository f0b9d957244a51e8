"""Blocks that real models hold, as plain modules written from their papers: sums of products, adapters, heads.

Each has what one would write by hand: orders that train, and kernels that are computed once for eval. `BLOCKS` has them
by name; the blocks under `refused/` must stay as they are. Needs `peft` for the blocks under `adapter/`.
"""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import models
from benchmarks.linears import HEAD_ORDERS

Run: TypeAlias = "Callable[..., Tensor]"
Bind: TypeAlias = "Callable[[Any], Run]"
Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        name: a path: group, kind, variant.
        make: a new module, a small one for tests if told so; called right after seeding.
        shapes: of the inputs.
        small: of the inputs of a small module.
        orders: by hand, with gradients: what to call, given the module.
        once: by hand, for eval: what depends on weights only is computed when it is given the module.
        mode: where it is meant to be used: "forward" (eval), "train", or "both".
        refused: must stay as it is; a regular expression that the report's reason matches.
    """

    name: str
    make: Callable[[bool], nn.Module]
    shapes: Shapes
    small: Shapes
    orders: Mapping[str, Bind] = field(default_factory=dict)
    once: Mapping[str, Bind] = field(default_factory=dict)
    mode: str = "both"
    refused: str = ""

    def __call__(self, seed: int = 0, small: bool = False) -> tuple[nn.Module, tuple[Tensor, ...], str]:
        """The module, always the same for a seed; its inputs; the mode."""
        torch.manual_seed(seed)
        module = self.make(small)
        lively(module)
        return module, tuple(torch.randn(shape) for shape in (self.small if small else self.shapes)), self.mode


@torch.no_grad()
def lively(module: nn.Module) -> None:
    """Statistics and affine parts of every batch norm as after a training, not as before one."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.5)


def over(order: Callable[..., Tensor]) -> Bind:
    """A function of module and inputs, given the module first."""
    return lambda module: partial(order, module)


# --- Adapters ---------------------------------------------------------------------------------------------------------


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


# --- Blocks that are re-parameterised ---------------------------------------------------------------------------------


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def fused(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution without bias and the batch norm after it."""
    scale, shift = affine(norm)
    return weight * scale.view(-1, 1, 1, 1), shift


def widened(weight: Tensor, size: int) -> Tensor:
    """A kernel with zeros around it."""
    h, w = ((size - length) // 2 for length in weight.shape[-2:])
    return F.pad(weight, (w, w, h, h))


def identity(channels: int, groups: int = 1) -> Tensor:
    """The kernel of a 1x1 convolution that does nothing."""
    return torch.eye(channels // groups).repeat(groups, 1)[:, :, None, None]


def summed(parts: list[tuple[Tensor, Tensor]], size: int) -> tuple[Tensor, Tensor]:
    """Branches of kernel and bias as one."""
    kernels, biases = zip(*parts, strict=True)
    return torch.stack([widened(each, size) for each in kernels]).sum(0), torch.stack(biases).sum(0)


class ConvNorm(nn.Sequential):
    """A convolution without bias, and batch norm."""

    def __init__(
        self, ins: int, outs: int, size: int | tuple[int, int], padding: int | tuple[int, int], groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(ins, outs, size, padding=padding, groups=groups, bias=False),
            nn.BatchNorm2d(outs),
        )

    def one(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias in eval."""
        return fused(self[0].weight, self[1])


class RepVGG(nn.Module):
    """3x3, 1x1 and the input itself, each with batch norm, added up (Ding et al., arXiv 2101.03697)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = ConvNorm(channels, channels, 3, 1)
        self.pointwise = ConvNorm(channels, channels, 1, 0)
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The three branches, and a ReLU."""
        return F.relu(self.dense(x) + self.pointwise(x) + self.identity(x))


@torch.no_grad()
def repvgg_once(block: RepVGG) -> Run:
    """One 3x3 convolution."""
    kernel = identity(block.identity.num_features).to(block.identity.weight)
    parts = [block.dense.one(), block.pointwise.one(), fused(kernel, block.identity)]
    weight, bias = summed(parts, 3)
    return lambda x: F.relu(F.conv2d(x, weight, bias, padding=1))


class ACNet(nn.Module):
    """3x3, 1x3 and 3x1, each with batch norm, added up (Ding et al., arXiv 1908.03930)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.square = ConvNorm(channels, channels, 3, 1)
        self.horizontal = ConvNorm(channels, channels, (1, 3), (0, 1))
        self.vertical = ConvNorm(channels, channels, (3, 1), (1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """The three branches."""
        return self.square(x) + self.horizontal(x) + self.vertical(x)


@torch.no_grad()
def acnet_once(block: ACNet) -> Run:
    """One 3x3 convolution."""
    weight, bias = summed([block.square.one(), block.horizontal.one(), block.vertical.one()], 3)
    return lambda x: F.conv2d(x, weight, bias, padding=1)


class NormThenPad(nn.Module):
    """Batch norm, and a border of what it makes of zero, so that the next layer needs no padding of its own."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Zeros around, then written over."""
        y = self.norm(x)
        p = self.padding
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        border = (self.norm.bias - self.norm.running_mean * scale).view(1, -1, 1, 1)
        y = F.pad(y, (p, p, p, p))
        y[:, :, :p, :] = border
        y[:, :, -p:, :] = border
        y[:, :, :, :p] = border
        y[:, :, :, -p:] = border
        return y


class ResidualPointwise(nn.Module):
    """A 1x1 convolution that starts as the identity: x + W x, as one kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 1, 1) / channels**0.5)
        self.register_buffer("identity", identity(channels))

    def kernel(self) -> Tensor:
        """W + 1."""
        return self.weight + self.identity

    def forward(self, x: Tensor) -> Tensor:
        """One convolution."""
        return F.conv2d(x, self.kernel())


class DiverseBranch(nn.Module):
    """3x3; 1x1; 1x1 then 3x3; 1x1 then average: batch norm after each layer (Ding et al., arXiv 2103.13425)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = ConvNorm(channels, channels, 3, 1)
        self.pointwise = ConvNorm(channels, channels, 1, 0)
        self.first = ResidualPointwise(channels)
        self.first_norm = NormThenPad(channels, 1)
        self.then = ConvNorm(channels, channels, 3, 0)
        self.mean_first = nn.Conv2d(channels, channels, 1, bias=False)
        self.mean_norm = NormThenPad(channels, 1)
        self.mean = nn.AvgPool2d(3, stride=1)
        self.mean_last = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The four branches."""
        y = self.dense(x) + self.pointwise(x)
        y = y + self.then(self.first_norm(self.first(x)))
        return y + self.mean_last(self.mean(self.mean_norm(self.mean_first(x))))


def after_pointwise(first: Tensor, norm: nn.BatchNorm2d, then: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias of 1x1, batch norm, and a kernel whose border is what the norm makes of zero."""
    scale, shift = affine(norm)
    weight = torch.einsum("omhw,mi->oihw", then, first[:, :, 0, 0] * scale[:, None])
    return weight, (then.sum((2, 3)) * shift).sum(1)


@torch.no_grad()
def diverse_once(block: DiverseBranch) -> Run:
    """One 3x3 convolution."""
    weight, bias = after_pointwise(block.first.kernel(), block.first_norm.norm, block.then[0].weight)
    scale, shift = affine(block.then[1])
    chained = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
    average = identity(len(scale)).to(weight).expand(-1, -1, 3, 3) / 9
    weight, bias = after_pointwise(block.mean_first.weight, block.mean_norm.norm, average)
    scale, shift = affine(block.mean_last)
    averaged = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
    weight, bias = summed([block.dense.one(), block.pointwise.one(), chained, averaged], 3)
    return lambda x: F.conv2d(x, weight, bias, padding=1)


class MobileOneLayer(nn.Module):
    """Some equal branches, a 1x1 beside them if they are larger, and the input, each with batch norm; ReLU."""

    def __init__(self, channels: int, size: int, groups: int, branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvNorm(channels, channels, size, size // 2, groups) for _ in range(branches))
        self.scale = ConvNorm(channels, channels, 1, 0, groups) if size > 1 else None
        self.skip = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """All branches, added up."""
        y = self.skip(x)
        if self.scale is not None:
            y = y + self.scale(x)
        for branch in self.branches:
            y = y + branch(x)
        return F.relu(y)


class MobileOne(nn.Sequential):
    """Depthwise and pointwise layers in turn (Vasu et al., arXiv 2206.04040)."""

    def __init__(self, channels: int, pairs: int, branches: int) -> None:
        super().__init__()
        for _ in range(pairs):
            self.append(MobileOneLayer(channels, 3, channels, branches))
            self.append(MobileOneLayer(channels, 1, 1, branches))


@torch.no_grad()
def mobileone_once(stack: MobileOne) -> Run:
    """One convolution and one ReLU a layer."""
    layers = []
    for layer in stack:
        convolution = layer.branches[0][0]
        size, groups, channels = convolution.kernel_size[0], convolution.groups, convolution.out_channels
        parts = [branch.one() for branch in layer.branches]
        parts += [layer.scale.one()] if layer.scale is not None else []
        parts.append(fused(identity(channels, groups).to(convolution.weight), layer.skip))
        layers.append((*summed(parts, size), size // 2, groups))

    def run(x: Tensor) -> Tensor:
        for weight, bias, padding, groups in layers:
            x = F.relu(F.conv2d(x, weight, bias, padding=padding, groups=groups))
        return x

    return run


def reparameterised() -> list[Block]:
    """Blocks that their papers turn into one convolution for eval."""
    shapes, small = ((8, 64, 56, 56),), ((2, 4, 6, 5),)
    found: list[tuple[str, Callable[[int], nn.Module], Bind]] = [
        ("repvgg", RepVGG, repvgg_once),
        ("acnet", ACNet, acnet_once),
        ("diverse branch", DiverseBranch, diverse_once),
    ]
    blocks = [
        Block(f"reparameterised/{name}", partial(_sized, make, 64), shapes, small, {}, {"one kernel": once}, "forward")
        for name, make, once in found
    ]
    return [
        *blocks,
        Block(
            "reparameterised/mobileone",
            lambda small: MobileOne(4, 1, 2) if small else MobileOne(128, 2, 4),
            ((8, 128, 28, 28),),
            small,
            once={"one kernel a layer": mobileone_once},
            mode="forward",
        ),
    ]


def _sized(make: Callable[[int], nn.Module], channels: int, small: bool) -> nn.Module:
    return make(4 if small else channels)


# --- Heads ------------------------------------------------------------------------------------------------------------


class SegFormerHead(nn.Module):
    """Four features to one width, resized, side by side, mixed, classified (Xie et al., arXiv 2105.15203).

    Args:
        widths: channels of the features, the largest map first.
        width: of the embedding.
        classes: channels of the result.
        linear: embed by linear layers on tokens, as the authors do; otherwise by 1x1 convolutions.
    """

    def __init__(self, widths: tuple[int, ...], width: int, classes: int, linear: bool = True) -> None:
        super().__init__()
        self.linear = linear
        self.embed = nn.ModuleList(nn.Linear(w, width) if linear else nn.Conv2d(w, width, 1) for w in widths)
        self.fuse = nn.Conv2d(width * len(widths), width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        """The smallest map first, as the authors put them."""
        size = features[0].shape[-2:]
        levels = []
        for feature, embed in reversed(list(zip(features, self.embed, strict=True))):
            if self.linear:
                tokens = embed(feature.flatten(2).transpose(1, 2))
                y = tokens.permute(0, 2, 1).reshape(len(feature), -1, *feature.shape[2:])
            else:
                y = embed(feature)
            if y.shape[-2:] != size:
                y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
            levels.append(y)
        return self.classify(F.relu(self.norm(self.fuse(torch.cat(levels, 1)))))


def _levels(head: SegFormerHead) -> tuple[list[Tensor], Tensor]:
    """The kernel of each level down to the fused width, the largest map first, and the bias that all give."""
    width = head.norm.num_features
    parts = head.fuse.weight[:, :, 0, 0].split(width, 1)[::-1]
    kernels = [part @ embed.weight.reshape(width, -1) for part, embed in zip(parts, head.embed, strict=True)]
    biases = [part @ embed.bias for part, embed in zip(parts, head.embed, strict=True)]
    return kernels, torch.stack(biases).sum(0)


def _mixed(kernels: list[Tensor], features: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
    total = F.conv2d(features[0], kernels[0][:, :, None, None], bias)
    for kernel, feature in zip(kernels[1:], features[1:], strict=True):
        y = F.conv2d(feature, kernel[:, :, None, None])
        total = total + F.interpolate(y, size=total.shape[-2:], mode="bilinear", align_corners=False)
    return total


def segformer_low(head: SegFormerHead, *features: Tensor) -> Tensor:
    """Embedding and fusion of each level as one product at its own resolution, then resized and added up."""
    kernels, bias = _levels(head)
    return head.classify(F.relu(head.norm(_mixed(kernels, features, bias))))


@torch.no_grad()
def segformer_once(head: SegFormerHead) -> Run:
    """The same with the batch norm in the kernels, all computed once."""
    kernels, bias = _levels(head)
    scale, shift = affine(head.norm)
    kernels, bias = [kernel * scale[:, None] for kernel in kernels], bias * scale + shift
    return lambda *features: head.classify(F.relu(_mixed(kernels, features, bias)))


def heads() -> list[Block]:
    """SegFormer's at 512 px, and Tucker regression."""
    small = tuple((2, width, size, size) for width, size in zip((3, 4, 5, 6), (8, 4, 2, 1), strict=True))
    found = []
    for name, widths, width in (("b0", (32, 64, 160, 256), 256), ("b5", (64, 128, 320, 512), 768)):
        shapes = tuple((1, w, 128 // 2**level, 128 // 2**level) for level, w in enumerate(widths))
        for spelling, linear in (("", True), (", 1x1", False)):
            make = partial(_segformer, widths, width, linear)
            orders: dict[str, Bind] = {"at low resolution": over(segformer_low)}
            once: dict[str, Bind] = {"at low resolution": segformer_once}
            found.append(Block(f"head/segformer {name}{spelling}", make, shapes, small, orders, once))
    plain, small = ((64, 256, 7, 7),), ((2, 6, 3, 3),)
    tucker: dict[str, Bind] = {"factors first": over(tucker_factors_first)}
    return [
        *found,
        Block("head/tucker, plain", _tucker, plain, small, tucker),
        Block("head/tucker, tensorly-torch", _tensorly_head, plain, small, dict(HEAD_ORDERS)),
    ]


def _segformer(widths: tuple[int, ...], width: int, linear: bool, small: bool) -> nn.Module:
    return SegFormerHead((3, 4, 5, 6), 8, 3, linear) if small else SegFormerHead(widths, width, 150, linear)


class TuckerHead(nn.Module):
    """Regression with a weight in Tucker form, which is rebuilt in every call (Kossaifi et al., arXiv 1707.08308)."""

    def __init__(self, shape: tuple[int, ...], classes: int, ranks: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (*shape, classes)
        self.core = nn.Parameter(torch.randn(ranks))
        scales = (size**-0.5 for size in sizes)
        self.factors = nn.ParameterList(
            nn.Parameter(torch.randn(size, rank) * scale)
            for size, rank, scale in zip(sizes, ranks, scales, strict=True)
        )
        self.bias = nn.Parameter(torch.randn(classes))

    def forward(self, x: Tensor) -> Tensor:
        """The weight mode by mode, then one contraction."""
        weight = self.core
        for factor in self.factors:
            weight = torch.tensordot(weight, factor, dims=([0], [1]))
        return torch.tensordot(x, weight, dims=x.dim() - 1) + self.bias


def tucker_factors_first(head: TuckerHead, x: Tensor) -> Tensor:
    """The factors on x, then the core."""
    c, h, w, o = head.factors
    y = torch.einsum("bchw,ca->bahw", x, c)
    y = torch.einsum("bahw,hd->badw", y, h)
    y = torch.einsum("badw,we->bade", y, w)
    return torch.tensordot(y, head.core, dims=3) @ o.t() + head.bias


def _tucker(small: bool) -> nn.Module:
    return TuckerHead((6, 3, 3), 5, (3, 2, 2, 4)) if small else TuckerHead((256, 7, 7), 100, (64, 3, 3, 32))


def _tensorly_head(small: bool) -> nn.Module:
    import tltorch

    return tltorch.TRL((6, 3, 3) if small else (256, 7, 7), (5,) if small else (100,), factorization="tucker", rank=0.1)


# --- Expanded layers --------------------------------------------------------------------------------------------------


def expand_linear(channels: int, times: int) -> nn.Sequential:
    """1x1 to a wider layer, 3x3, 1x1 back; the padding comes first (ExpandNet-CL, Guo et al., arXiv 1811.10495)."""
    wide = channels * times
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, padding=1, bias=False),
        nn.Conv2d(wide, wide, 3, bias=False),
        nn.Conv2d(wide, channels, 1, bias=False),
    )


def expand_kernel(channels: int, times: int, layers: int) -> nn.Sequential:
    """A large kernel as some 3x3 convolutions, all padding before the first (ExpandNet-CK)."""
    widths = [channels, *[channels * times] * (layers - 1), channels]
    return nn.Sequential(
        *(
            nn.Conv2d(ins, outs, 3, padding=0 if number else layers, bias=False)
            for number, (ins, outs) in enumerate(zip(widths, widths[1:], strict=False))
        )
    )


def one_kernel(chain: nn.Sequential) -> tuple[Tensor, int]:
    """The kernel of a chain of convolutions, and its padding."""
    first, *others = chain
    weight = first.weight
    for layer in others:
        weight = F.conv_transpose2d(layer.weight, weight)
    return weight, first.padding[0]


def expanded_merged(chain: nn.Sequential, x: Tensor) -> Tensor:
    """One convolution, its kernel built in every call."""
    weight, padding = one_kernel(chain)
    return F.conv2d(x, weight, padding=padding)


@torch.no_grad()
def expanded_once(chain: nn.Sequential) -> Run:
    """One convolution."""
    weight, padding = one_kernel(chain)
    return lambda x: F.conv2d(x, weight, padding=padding)


def expanded() -> list[Block]:
    """Linear over-parameterisation."""
    shapes, small = ((4, 64, 56, 56),), ((2, 4, 8, 7),)
    found: list[tuple[str, Callable[[int], nn.Module]]] = [
        ("CL x4", partial(expand_linear, times=4)),
        ("CK x4, 5x5", partial(expand_kernel, times=4, layers=2)),
        ("CK x4, 7x7", partial(expand_kernel, times=4, layers=3)),
    ]
    orders: dict[str, Bind] = {"one kernel": over(expanded_merged)}
    once: dict[str, Bind] = {"one kernel": expanded_once}
    return [Block(f"expandnet/{name}", partial(_sized, make, 64), shapes, small, orders, once) for name, make in found]


# --- Sums of factorised terms -----------------------------------------------------------------------------------------


class TensorBlockTerms(nn.Module):
    """A 3x3 kernel as a sum of Tucker terms over split channels (block-term, Ye et al., arXiv 1712.05134)."""

    def __init__(self, modes: tuple[int, int], terms: int, rank: int) -> None:
        super().__init__()
        a, b = modes
        self.a = nn.Parameter(torch.randn(terms, a, rank, a) / a**0.5)
        self.b = nn.Parameter(torch.randn(terms, b, rank, b) / b**0.5)
        self.space = nn.Parameter(torch.randn(terms, rank, 3, 3) / 3)
        self.core = nn.Parameter(torch.randn(terms, rank, rank, rank) / (terms * rank**3) ** 0.5)

    def kernel(self) -> Tensor:
        """Term by term."""
        total: Any = 0
        for a, b, space, core in zip(self.a, self.b, self.space, self.core, strict=True):
            total = total + torch.einsum("xrp, yqs, khw, rqk -> xypshw", a, b, space, core)
        outs, ins = self.a.shape[1] * self.b.shape[1], self.a.shape[3] * self.b.shape[3]
        return total.reshape(outs, ins, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """One convolution."""
        return F.conv2d(x, self.kernel(), padding=1)


def block_terms_at_once(layer: TensorBlockTerms, x: Tensor) -> Tensor:
    """All terms as one product, by way of small intermediates."""
    middle = torch.einsum("nkhw,nrqk->nrqhw", layer.space, layer.core)
    left = torch.einsum("nxrp,nrqhw->nqxphw", layer.a, middle)
    weight = torch.einsum("nqxphw,nyqs->xypshw", left, layer.b)
    return F.conv2d(x, weight.reshape(x.shape[1], x.shape[1], 3, 3), padding=1)


class CPTerms(nn.Module):
    """A kernel as a loop over rank-1 terms, nine nodes each (as TedNet writes its CP convolution).

    Args:
        channels: in and out.
        rank: terms.
        stacked: the vectors are rows of four parameters, otherwise each is a parameter.
    """

    def __init__(self, channels: int, rank: int, stacked: bool) -> None:
        super().__init__()
        sizes = {"out": channels, "ins": channels, "rows": 3, "columns": 3}
        scale = (rank * 9 * channels) ** -0.125
        self.stacked = stacked
        for name, size in sizes.items():
            vectors = torch.randn(rank, size) * scale
            held = nn.Parameter(vectors) if stacked else nn.ParameterList(map(nn.Parameter, vectors))
            setattr(self, name, held)

    def kernel(self) -> Tensor:
        """Term by term: two outer products, and theirs."""
        total: Any = 0
        for number in range(len(self.out)):
            out, ins = self.out[number].unsqueeze(-1), self.ins[number].unsqueeze(-1)
            rows, columns = self.rows[number].unsqueeze(-1), self.columns[number].unsqueeze(-1)
            channels = torch.tensordot(out, ins, dims=([-1], [-1])).unsqueeze(-1)
            space = torch.tensordot(rows, columns, dims=([-1], [-1])).unsqueeze(-1)
            total += torch.tensordot(channels, space, dims=([-1], [-1]))
        return total

    def forward(self, x: Tensor) -> Tensor:
        """One convolution."""
        return F.conv2d(x, self.kernel(), padding=1)


def _rows(vectors: Any) -> Tensor:
    return vectors if isinstance(vectors, Tensor) else torch.stack(list(vectors))


def cp_depthwise(layer: CPTerms, x: Tensor) -> Tensor:
    """1x1, a depthwise 3x3, 1x1."""
    out, ins, rows, columns = map(_rows, (layer.out, layer.ins, layer.rows, layer.columns))
    y = F.conv2d(x, ins[:, :, None, None])
    y = F.conv2d(y, (rows[:, :, None] * columns[:, None])[:, None], padding=1, groups=len(y[0]))
    return F.conv2d(y, out.t()[:, :, None, None])


def cp_rebuilt(layer: CPTerms, x: Tensor) -> Tensor:
    """The kernel as one einsum."""
    out, ins, rows, columns = map(_rows, (layer.out, layer.ins, layer.rows, layer.columns))
    space = (rows[:, :, None] * columns[:, None]).flatten(1)
    left = (out[:, :, None] * ins[:, None]).flatten(1)
    return F.conv2d(x, (left.t() @ space).view(out.shape[1], ins.shape[1], 3, 3), padding=1)


class TTLinear(nn.Module):
    """A linear layer with a tensor-train weight, as one einsum over the cores and x, bias added."""

    def __init__(self, modes: tuple[int, int, int], rank: int) -> None:
        super().__init__()
        self.modes = modes
        a, b, c = modes
        shapes: list[tuple[int, ...]] = [(a, a, rank), (rank, b, b, rank), (rank, c, c)]
        cores = (torch.randn(shape) * (mode * rank**0.67) ** -0.5 for shape, mode in zip(shapes, modes, strict=True))
        self.cores = nn.ParameterList(map(nn.Parameter, cores))
        self.bias = nn.Parameter(torch.randn(modes[0] * modes[1] * modes[2]))

    def forward(self, x: Tensor) -> Tensor:
        """From left to right, as where opt_einsum is not installed, the weight is built first."""
        y = torch.einsum("apr, rbqs, sco, ... abc -> ... pqo", *self.cores, x.unflatten(-1, self.modes))
        return y.flatten(-3) + self.bias


def tt_linear_chained(layer: TTLinear, x: Tensor) -> Tensor:
    """One core after the other on x, each as one matrix product."""
    first, second, third = layer.cores
    a, b, c = layer.modes
    rank = first.shape[-1]
    y = x.reshape(-1, a, b * c).transpose(1, 2) @ first.reshape(a, -1)
    y = y.view(-1, b, c, a, rank).permute(0, 2, 3, 4, 1).reshape(-1, rank * b) @ second.reshape(rank * b, -1)
    y = y.view(-1, c, a, b, rank).permute(0, 2, 3, 4, 1).reshape(-1, rank * c) @ third.reshape(rank * c, -1)
    return y.view(*x.shape) + layer.bias


def tt_linear_rebuilt(layer: TTLinear, x: Tensor) -> Tensor:
    """The matrix, then one product."""
    first, second, third = layer.cores
    matrix = torch.einsum("apr,rbqs->abpqs", first, second)
    matrix = torch.einsum("abpqs,sco->abcpqo", matrix, third)
    return x @ matrix.reshape(x.shape[-1], -1) + layer.bias


def factorised() -> list[Block]:
    """Sums of factorised terms, and a factorised linear layer."""
    x, small = ((8, 128, 28, 28),), ((2, 8, 6, 5),)
    kronecker: dict[str, Bind] = {
        "one by one": over(models.kronecker_one_by_one),
        "all at once": over(models.kronecker_all_at_once),
    }
    terms: dict[str, Bind] = {"grouped": over(models.block_term_grouped), "rebuilt": over(models.block_term_rebuilt)}
    cp: dict[str, Bind] = {"depthwise": over(cp_depthwise), "rebuilt": over(cp_rebuilt)}
    linear: dict[str, Bind] = {"chained": over(tt_linear_chained), "rebuilt": over(tt_linear_rebuilt)}
    return [
        Block("factorised/kronecker, sum of 4", _kronecker, x, small, kronecker),
        Block("factorised/block terms, 8 Tucker-2", _block_terms, x, small, terms),
        Block("factorised/block terms, 4 built", _built, x, small, {"at once": over(block_terms_at_once)}),
        Block("factorised/CP loop, vectors", partial(_cp, False), x, small, cp),
        Block("factorised/CP loop, rows", partial(_cp, True), x, small, cp),
        Block("factorised/TT linear, n-ary einsum", _tt_linear, ((4, 256, 1024),), ((2, 3, 12),), linear),
    ]


def _kronecker(small: bool) -> nn.Module:
    return models.KroneckerConv((2, 2), (4, 4), 2) if small else models.KroneckerConv((16, 16), (8, 8), 4)


def _block_terms(small: bool) -> nn.Module:
    return models.BlockTermConv(8, 3, 2) if small else models.BlockTermConv(128, 8, 8)


def _built(small: bool) -> nn.Module:
    return TensorBlockTerms((2, 4), 2, 2) if small else TensorBlockTerms((8, 16), 4, 4)


def _cp(stacked: bool, small: bool) -> nn.Module:
    return CPTerms(8, 3, stacked) if small else CPTerms(128, 16, stacked)


def _tt_linear(small: bool) -> nn.Module:
    return TTLinear((2, 3, 2), 2) if small else TTLinear((8, 16, 8), 4)


# --- What must stay as it is ------------------------------------------------------------------------------------------


class SizedByData(nn.Module):
    """1x1, a resize to a size that is a value of an input, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1, bias=False)
        self.last = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The size is the number of rows whose first value is positive, and eight."""
        size = int((x[0, 0, :, 0] > 0).sum().item()) + 8
        y = F.interpolate(self.first(x), size=(size, size), mode="bilinear", align_corners=False)
        return self.last(y)


def _pair(between: Callable[[int], nn.Module] | None, first: Mapping[str, Any], last: Mapping[str, Any]) -> Any:
    """Two convolutions with something between them."""

    def make(channels: int) -> nn.Module:
        middle = [between(channels)] if between else []
        return nn.Sequential(nn.Conv2d(channels, channels, **first), *middle, nn.Conv2d(channels, channels, **last))

    return partial(_sized, make, 64)


def refused() -> list[Block]:
    """Pairs of convolutions that are not one."""
    shapes, small = ((8, 64, 28, 28),), ((2, 4, 6, 5),)
    plain = {"kernel_size": 1, "bias": False}
    padded = {"kernel_size": 3, "padding": 1, "bias": False}
    biased = {"kernel_size": 1, "bias": True}
    return [
        Block("refused/3x3 after 3x3", _pair(None, padded, padded), shapes, small, refused="border|padding|padded"),
        Block("refused/bias before 3x3", _pair(None, biased, padded), shapes, small, refused="bias"),
        Block(
            "refused/batch norm in training",
            _pair(nn.BatchNorm2d, plain, plain),
            shapes,
            small,
            mode="train",
            refused="batch norm",
        ),
        Block("refused/ReLU", _pair(lambda _: nn.ReLU(), plain, plain), shapes, small, refused="relu"),
        Block("refused/size of data", partial(_sized, SizedByData, 64), shapes, small, refused="interpolate|size"),
    ]


BLOCKS: dict[str, Block] = {
    block.name: block
    for group in (adapters, reparameterised, heads, expanded, factorised, refused)
    for block in group()
}
