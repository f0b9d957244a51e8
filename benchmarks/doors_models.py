"""The models of the table of doors, each with inputs of several sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks.block import lively
from benchmarks.blocks.heads import SegFormerHead
from tests.models import factorized_resnet18, plain_resnet18


@dataclass(frozen=True)
class Doored:
    """One model.

    Attributes:
        name: of the row.
        make: builds it; called right after seeding.
        shapes: of its inputs, and further ones that it must take when sizes are dynamic.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]

    def build(self) -> nn.Module:
        """The model, always the same."""
        torch.manual_seed(0)
        model = self.make()
        lively(model)
        return model

    def inputs(self, number: int = 0, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of one of the sizes, always the same for a seed."""
        torch.manual_seed(10 * seed + number + 1)
        return tuple(torch.randn(shape) for shape in self.shapes[number])


class FeedForward(nn.Sequential):
    """The half step of a Conformer block."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class Conformer(nn.Module):
    """A Conformer block (Gulati et al., arXiv 2005.08100) with a full convolution over time, on padded batches.

    Args:
        width: features of a frame.
        heads: of the attention.
        kernel: frames of the convolution over time.
    """

    def __init__(self, width: int = 144, heads: int = 4, kernel: int = 31) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = FeedForward(width), FeedForward(width)
        self.before, self.mixed, self.after = (nn.LayerNorm(width) for _ in range(3))
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.point = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.over_time: nn.Module = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def attention(self, x: Tensor, frames: Tensor | None) -> Tensor:
        """Multi-head self-attention to the frames that are there."""
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.attend(x).chunk(3, -1))
        mask = None if frames is None else frames[:, None, None]
        return self.project(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def convolution(self, x: Tensor, frames: Tensor | None) -> Tensor:
        """Gated linear unit, convolution over time, batch norm."""
        y = F.glu(self.gate(x.transpose(1, 2)), dim=1)
        y = y if frames is None else y * frames[:, None]
        return self.point(F.silu(self.norm(self.over_time(y)))).transpose(1, 2)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """Of (batch, frames, features), and which frames are no padding, (batch, frames); None: all."""
        x = x + self.first(x) / 2
        x = x + self.attention(self.before(x), frames)
        x = x + self.convolution(self.mixed(x), frames)
        return self.after(x + self.second(x) / 2)


def cp_conformer(width: int = 144, kernel: int = 31, rank: float = 0.1) -> Conformer:
    """A Conformer block whose convolution over time is tensorly-torch's, as CP.

    Args:
        width: features of a frame.
        kernel: frames of the convolution.
        rank: of the decomposition, as a share of the dense kernel's parameters.
    """
    import tltorch

    model = Conformer(width, kernel=kernel)
    model.over_time = tltorch.FactorizedConv(
        width, width, kernel, order=1, padding=kernel // 2, rank=rank, factorization="cp", bias=False
    )
    nn.init.normal_(model.over_time.weight.weights, 1.0, 0.1)
    for factor in model.over_time.weight.factors:
        nn.init.normal_(factor, 0.0, 0.2)
    return model


class Narrow(nn.Module):
    """A plain residual network for adapters: three stages of two 3x3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(64) for _ in range(6))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


def lora_net() -> nn.Module:
    """`Narrow` with a PEFT LoRA on every 3x3 convolution of its stages."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=[f"convs.{n}" for n in range(6)])
    model = peft.get_peft_model(Narrow(), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero as made, which would hide a mistake
                weight.normal_(0, 0.05)
    return model


def models() -> list[Doored]:
    """All of them; images of 96 px, so that the networks are whole and a run ends."""
    images = (((4, 3, 96, 96),), ((3, 3, 96, 96),), ((7, 3, 96, 96),))
    speech = (((4, 120, 144),), ((4, 97, 144),), ((3, 143, 144),))
    widths = (32, 64, 160, 256)
    levels = tuple(tuple((b, w, 64 // 2**n, 64 // 2**n) for n, w in enumerate(widths)) for b in (2, 3, 5))
    found = [
        Doored(f"ResNet-18 {kind}, {how}", lambda kind=kind, how=how: factorized_resnet18(kind, 0.25, how), images)
        for kind in ("tt", "cp", "tucker")
        for how in ("factorized", "reconstructed")
    ]
    return [
        *found,
        Doored("ResNet-18, plain", plain_resnet18, images),
        Doored("conv net with LoRA", lora_net, (((4, 3, 32, 32),), ((3, 3, 32, 32),), ((6, 3, 32, 32),))),
        Doored("Conformer block, CP", cp_conformer, speech),
        Doored("SegFormer B0 head", lambda: SegFormerHead(widths, 256, 150), levels),
    ]
