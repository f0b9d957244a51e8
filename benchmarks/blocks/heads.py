"""Heads: SegFormer's, which resizes and concatenates, and Tucker regression."""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks.block import Bind, Block, Run, over
from benchmarks.blocks.reparameterised import affine
from benchmarks.linears import HEAD_ORDERS


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
