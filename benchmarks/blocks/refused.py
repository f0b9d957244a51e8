"""What must stay as it is, with the reason."""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks.block import Block
from benchmarks.blocks.reparameterised import _sized


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
        Block("refused/bias before 3x3", _pair(None, biased, padded), shapes, small, refused="bias|constant"),
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
