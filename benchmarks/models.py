"""Layers and models of the table that neither torch nor tensorly-torch has, written as their papers write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ce_fx


class KroneckerConv(nn.Module):
    """A 3x3 convolution whose kernel is a sum of Kronecker products (Hameed et al., arXiv 2109.14710).

    Args:
        left: output and input channels of the 3x1 factors.
        right: of the 1x3 factors; the kernel's channels are the products.
        terms: products that are added up.
    """

    def __init__(self, left: tuple[int, int], right: tuple[int, int], terms: int) -> None:
        super().__init__()
        scale = (1 / (9 * left[1] * right[1] * terms)) ** 0.25
        self.left = nn.Parameter(torch.randn(terms, *left, 3, 1) * scale)
        self.right = nn.Parameter(torch.randn(terms, *right, 1, 3) * scale)

    def forward(self, x: Tensor) -> Tensor:
        """The kernel by torch.kron, then one convolution."""
        kernel = sum(torch.kron(a, b) for a, b in zip(self.left, self.right, strict=True))
        return F.conv2d(x, kernel, padding=1)


def kronecker_one_by_one(layer: KroneckerConv, x: Tensor) -> Tensor:
    """Each term as 1x3 with its right factor, then 3x1 with its left one, on the split channels."""
    _, t1, s1 = layer.left.shape[:3]
    b, _, h, w = x.shape
    split = x.reshape(b * s1, -1, h, w)
    total = None
    for left, right in zip(layer.left, layer.right, strict=True):
        t2 = right.shape[0]
        y = F.conv2d(split, right, padding=(0, 1)).view(b, s1, t2, h, w).transpose(1, 2).reshape(b * t2, s1, h, w)
        y = F.conv2d(y, left, padding=(1, 0)).view(b, t2, t1, h, w).transpose(1, 2)
        total = y if total is None else total + y
    return total.reshape(b, -1, h, w)


def kronecker_all_at_once(layer: KroneckerConv, x: Tensor) -> Tensor:
    """The right factors of all terms as one convolution, the left ones as one, which adds up the terms."""
    n, t1, s1 = layer.left.shape[:3]
    b, _, h, w = x.shape
    t2, s2 = layer.right.shape[1:3]
    y = F.conv2d(x.reshape(b * s1, s2, h, w), layer.right.reshape(n * t2, s2, 1, 3), padding=(0, 1))
    y = y.view(b, s1, n, t2, h, w).permute(0, 3, 2, 1, 4, 5).reshape(b * t2, n * s1, h, w)
    y = F.conv2d(y, layer.left.transpose(0, 1).reshape(t1, n * s1, 3, 1), padding=(1, 0))
    return y.view(b, t2, t1, h, w).transpose(1, 2).reshape(b, -1, h, w)


class BlockTermConv(nn.Module):
    """A 3x3 convolution as a sum of Tucker-2 blocks: 1x1, 3x3, 1x1 each (Chen et al., arXiv 1703.02180)."""

    def __init__(self, channels: int, blocks: int, rank: int) -> None:
        super().__init__()
        self.down = nn.ParameterList(_matrix(rank, channels) for _ in range(blocks))
        self.core = nn.ParameterList(nn.Parameter(torch.randn(rank, rank, 3, 3) / (3 * rank**0.5)) for _ in self.down)
        self.up = nn.ParameterList(_matrix(channels, rank, rank * blocks) for _ in self.down)

    def forward(self, x: Tensor) -> Tensor:
        """Block by block."""
        total = 0
        for down, core, up in zip(self.down, self.core, self.up, strict=True):
            y = F.conv2d(F.conv2d(x, down), core, padding=1)
            total = total + F.conv2d(y, up)
        return total


def block_term_grouped(layer: BlockTermConv, x: Tensor) -> Tensor:
    """All blocks at once: 1x1, grouped 3x3, 1x1 (a ResNeXt block, as the paper observes)."""
    down, core, up = (list(each) for each in (layer.down, layer.core, layer.up))
    y = F.conv2d(F.conv2d(x, torch.cat(down)), torch.cat(core), padding=1, groups=len(core))
    return F.conv2d(y, torch.cat(up, 1))


def block_term_rebuilt(layer: BlockTermConv, x: Tensor) -> Tensor:
    """The dense kernel, then one convolution."""
    kernels = (
        torch.einsum("tv,vuhw,us->tshw", up[..., 0, 0], core, down[..., 0, 0])
        for down, core, up in zip(layer.down, layer.core, layer.up, strict=True)
    )
    return F.conv2d(x, torch.stack(list(kernels)).sum(0), padding=1)


def cp_chain(channels: int, rank: int) -> nn.Sequential:
    """A CP-decomposed convolution as plain layers (Lebedev et al., arXiv 1412.6553)."""
    return nn.Sequential(
        nn.Conv2d(channels, rank, 1, bias=False),
        nn.Conv2d(rank, rank, (3, 1), padding=(1, 0), groups=rank, bias=False),
        nn.Conv2d(rank, rank, (1, 3), padding=(0, 1), groups=rank, bias=False),
        nn.Conv2d(rank, channels, 1),
    )


def cp_chain_merged(chain: nn.Sequential, x: Tensor) -> Tensor:
    """The chain with both strips as one depthwise 3x3."""
    down, rows, columns, up = chain
    y = F.conv2d(down(x), rows.weight * columns.weight, padding=1, groups=rows.groups)
    return up(y)


def tucker2_chain(channels: int, rank: int) -> nn.Sequential:
    """A Tucker-2-decomposed convolution as plain layers (Kim et al., arXiv 1511.06530)."""
    return nn.Sequential(
        nn.Conv2d(channels, rank, 1, bias=False),
        nn.Conv2d(rank, rank, 3, padding=1, bias=False),
        nn.Conv2d(rank, channels, 1),
    )


class Einsum(nn.Module):
    """A layer as a conv_einsum string over its own factors (Rabbani et al., arXiv 2401.03384).

    Args:
        string: x first.
        shapes: of the factors.
        optimize: the order; "written" goes from left to right.
    """

    def __init__(self, string: str, shapes: tuple[tuple[int, ...], ...], optimize: str = "written") -> None:
        super().__init__()
        self.string = string
        self.optimize = optimize
        self.factors = nn.ParameterList(nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        """One call."""
        return ce_fx.conv_einsum(self.string, x, *self.factors, optimize=self.optimize)


def with_order(layer: Einsum, optimize: str) -> Einsum:
    """The same string over the same factors in another order."""
    other = Einsum(layer.string, (), optimize)
    other.factors = layer.factors
    return other


class ByHand(nn.Module):
    """A layer of a model, evaluated in an order that was written by hand; its parameters are the layer's own."""

    def __init__(self, layer: nn.Module, order: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """The layer in the given order."""
        return self.order(self.layer, x)


def by_hand(model: nn.Module, order: Callable[[nn.Module, Tensor], Tensor], kind: str = "FactorizedConv") -> nn.Module:
    """A model with the same parameters, in which every layer of one class stands in a `ByHand`."""
    twin = _shallow(model)
    for name, child in twin.named_children():
        replaced = ByHand(child, order) if type(child).__name__ == kind else by_hand(child, order, kind)
        twin._modules[name] = replaced
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def _matrix(rows: int, columns: int, fan_in: int | None = None) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, 1, 1) / (fan_in or columns) ** 0.5)
