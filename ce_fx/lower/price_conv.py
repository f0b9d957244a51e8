"""What convolutions cost, by the shapes of x, weight and result."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ce_fx.plan.kinds import conv_family
from ce_fx.plan.ops import Op


def conv_ops(x: Sequence[int], weight: Sequence[int], out: Sequence[int]) -> tuple[Op, ...]:
    """X [B, g*S, ...], weight [g*T, S, ...]: every output element is a sum over S and the kernel."""
    rows, ins, *kernel = weight
    channel = len(out) - 1 - len(kernel)
    groups = x[channel] // max(1, ins)
    reduce, columns, pixels = ins * prod(kernel), rows // groups, prod(out[channel + 1 :])
    family = conv_family(ins, columns, groups, prod(kernel))
    return (Op(family, prod(out) * reduce, reduce, columns, pixels, prod(x) + prod(weight) + prod(out)),)


def transposed_ops(x: Sequence[int], weight: Sequence[int], out: Sequence[int], groups: int) -> tuple[Op, ...]:
    """X [B, g*S, ...], weight [g*S, T, ...]: every input element meets T and the kernel."""
    ins, outs, *kernel = weight
    pixels = prod(out[len(x) - len(kernel) :])
    reduce = (ins // groups) * prod(kernel)
    family = conv_family(ins // groups, outs, groups, prod(kernel))
    macs = prod(x) * outs * prod(kernel)
    return (Op(family, macs, reduce, outs, pixels, prod(x) + prod(weight) + prod(out)),)
