"""Over-parameterised convolutions of ExpandNet: CL and CK."""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.blocks.block import Bind, Block, Run, over
from benchmarks.blocks.reparameterised import _sized


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
