"""Which torch op a pairwise step becomes: a pure function of its kinds of indices.

    kind      when                                                        op
    slide     a convolution axis joins features and kernel                conv1d/2d/3d, or transposed
    merge     a convolution axis joins two kernels                        conv_transpose (a full convolution)
    mul       nothing is summed and no axis joins                         broadcast multiply
    bmm       an index is in both and kept                                batched matmul
    pixels    the larger side has many positions, the other is a matrix   1x1 convolution
    mm        otherwise                                                   one matmul

`[b,s,h,w] x [s,t]` is "pixels"; `[b,s] x [s,t]` is "mm"; `[b,g,s,h] x [g,s,t]` is "bmm"; `[r,h] x [r,w]` with r kept
and h, w of two different windows is "mul".
"""

from __future__ import annotations

from math import prod
from typing import Literal, TypeAlias

from ce_fx.algebra import Index
from ce_fx.plan.network import Network
from ce_fx.plan.ops import Op
from ce_fx.plan.tree import Step

Kind: TypeAlias = Literal["slide", "merge", "mul", "bmm", "pixels", "mm"]

MANY = 16
"""Positions from which a matrix is applied at each of them in place; fewer are moved into the rows of one matmul, as
those of a kernel are: a batch of tiny matrix products is slower than the copy."""


def kind_of(step: Step, network: Network) -> Kind:
    """The kind of a step; see the module's table, which is tried from the top."""
    if step.joined:
        return "merge" if all(axis.features_left is None for axis in step.joined) else "slide"
    if not step.contracted:
        return "mul"
    if step.batch:
        return "bmm"
    return "mm" if _at_many_positions(step, network) is None else "pixels"


def left_is_larger(step: Step, network: Network) -> bool:
    """Whether the left side is the one to treat as the features: it has them, or many positions, or more elements.

    Of two equals it is the one with the first operand, so that a step does not depend on the order of its sides.
    """
    sides = {axis.features_left for axis in step.joined} - {None}
    if sides:
        return True in sides
    at_many = _at_many_positions(step, network)
    if at_many is not None:
        return at_many
    left, right = network.size(step.left), network.size(step.right)
    return left > right or (left == right and (step.left & -step.left) < (step.right & -step.right))


def _at_many_positions(step: Step, network: Network) -> bool | None:
    """Whether the left (True) or the right side (False) has many positions and the other none; None otherwise."""
    if step.joined or bool(step.left_axes) == bool(step.right_axes):
        return None
    both = step.left | step.right
    positions = prod(network.axis_length(axis, both) for axis in (*step.left_axes, *step.right_axes))
    return bool(step.left_axes) if positions >= MANY else None


def conv_family(channels: int, columns: int, groups: int, window: int) -> str:
    """The family of a convolution.

    Args:
        channels: input channels of one group.
        columns: output channels of one group.
        groups: number of groups.
        window: kernel positions.
    """
    if groups > 1:
        return "depthwise" if max(channels, columns) == 1 else "grouped_thin" if channels <= 2 else "grouped"
    if min(channels, columns) <= 2:
        return "conv_few"
    return "conv1x1" if window == 1 else "conv"


def ops_of(step: Step, network: Network) -> tuple[Op, ...]:
    """What a cost model sees of a step: its op's family and the numbers that decide its time."""
    kind = kind_of(step, network)
    macs = network.flops(step.left, step.right)
    elements = network.size(step.left) + network.size(step.right) + network.size(step.left | step.right)
    groups, channels = _size(step.batch), _size(step.contracted)
    swap = not left_is_larger(step, network)
    free = (step.right_free, step.left_free) if swap else (step.left_free, step.right_free)
    axes = (step.right_axes, step.left_axes) if swap else (step.left_axes, step.right_axes)
    both = step.left | step.right
    rows = prod(network.axis_length(axis, both) for axis in axes[0])
    columns = _size(free[1]) * prod(network.axis_length(axis, both) for axis in axes[1])
    if kind == "mul":
        return (Op("mul", macs, 1, 1, network.size(both), elements),)
    if kind in ("slide", "merge"):
        window = prod(
            axis.kernel if axis.features_left is not None else (axis.left if swap else axis.right).length
            for axis in step.joined
        )
        rows *= prod(axis.out.length for axis in step.joined)
        family = conv_family(channels, columns, groups, window)
        return (Op(family, macs, channels * window, columns, rows, elements),)
    if kind == "pixels":
        return (Op(conv_family(channels, columns, 1, 1), macs, channels, columns, rows, elements),)
    if kind == "bmm" and axes[0]:  # the positions stay innermost: see `ce_fx.lower.multiply.batched`
        return (Op(kind, macs, channels, rows, columns, elements),)
    return (Op(kind, macs, channels, columns, rows * _size(free[0]), elements),)


def _size(indices: tuple[Index, ...]) -> int:
    return prod(index.size for index in indices)
