"""Blocks that are re-parameterised for inference: RepVGG, ACNet, diverse branches, MobileOne."""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks.block import Bind, Block, Run


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
