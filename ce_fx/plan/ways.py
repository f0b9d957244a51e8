"""The ways in which one pairwise step can be evaluated, and what each costs.

A step has a way of its own kind (see `ce_fx.plan.kinds`). Some have others, equal in value:

    kind     way       what runs                                                    pays where
    slide    conv      torch's convolution                                          most steps
    slide    grouped   a kernel without channels repeated for them: depthwise       many channels
    slide    unfold    windows of the features copied out, then a matmul            small images, many channels
    slide    taps      a matmul to all kernel positions, shifted and added up       few output channels
    slide    band      the kernel spread to a matrix over positions, then a matmul  tiny images, thin kernels
    pixels   conv      a 1x1 convolution                                            many positions
    pixels   matmul    a matmul with the features as batch                          few of them
    mm       mm        a matmul in the order that the next step reads               most
    mm       swapped   its transpose                                                thin matrices
    mm       mm_conv   a 1x1 convolution of one image                               large matrices, on some machines

"unfold_conv", "taps_conv" and "mm_conv" put a 1x1 convolution in place of a matmul: torch's convolutions and matmuls
are of different libraries, which differ by a factor of two, one way on one machine and the other on the next.

"unfold" is im2col (Chellapilla et al., 2006), "taps" the same transposed (col2im of a kernel-to-row product), "band"
a Toeplitz matrix. Which is fastest depends on sizes and machine by factors of 2 to 4, so the time model prices them
and the clock decides between the closest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import TypeAlias

from ce_fx.algebra import Index
from ce_fx.plan.grid import Grid
from ce_fx.plan.kinds import conv_family, kind_of, left_is_larger, ops_of
from ce_fx.plan.modes import grads, runs
from ce_fx.plan.network import Network
from ce_fx.plan.ops import Op
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import AxisStep, Step, Tree, splits_of, step_of

Way: TypeAlias = str

_CAUTION = 1.6  # between ways that the clock has not compared; typical errors are 1.3 to 1.8
_TAPS = 9  # kernel positions that are added up one by one
_BAND = 64  # positions of an image that a kernel is spread over


def ways_of(step: Step, network: Network) -> tuple[Way, ...]:
    """The ways to evaluate a step; the first is that of its kind."""
    kind = kind_of(step, network)
    if kind == "pixels":
        return ("conv", "matmul")
    if kind == "mm":
        return ("mm", "swapped", "mm_conv")
    if kind == "slide" and _plain(step, network):
        return ("conv", *(way for way, fits in _FITS.items() if fits(step, network)))
    return ("conv",) if kind in ("slide", "merge") else (kind,)


def ops_of_way(step: Step, network: Network, way: Way) -> tuple[Op, ...]:
    """What a cost model sees of a step that is evaluated in some way."""
    if way in _PRICES and kind_of(step, network) == "slide":
        return _PRICES[way](_Slide(step, network))
    ops = ops_of(step, network)
    if way == "matmul":
        (op,) = ops
        return (Op("bmm", op.macs, op.reduce, op.rows, op.columns, op.elements),)  # positions are innermost
    if way == "mm_conv":
        (op,) = ops
        family = conv_family(op.reduce, op.columns, 1, 1)
        return (_copy(op.reduce * op.columns), Op(family, op.macs, op.reduce, op.columns, op.rows, op.elements))
    if way == "swapped":
        (op,) = ops
        return (Op("mm", op.macs, op.reduce, op.rows, op.columns, op.elements),)
    return ops


def best_way(step: Step, network: Network, model: TimeModel, wanted: int, times: int = 1) -> tuple[float, Way]:
    """The fastest way by a time model, and its predicted seconds: `wanted` operands get a gradient.

    The forward runs `times` times.

    A way that is not that of the kind has to be faster by the error that a prediction can have.
    """
    first, *others = ways_of(step, network)
    best = (model.seconds(ops_of_way(step, network, first), wanted, times), first)
    for way in others:
        best = min(best, (_CAUTION * model.seconds(ops_of_way(step, network, way), wanted, times), way))
    return best


def best_ways(network: Network, tree: Tree, mode: str, model: TimeModel) -> dict[int, Way]:
    """The fastest way by a time model for each step of a tree, where that is not the way of its kind.

    Args:
        network: what to evaluate.
        tree: the order.
        mode: "train" counts the backward, "checkpoint" a second forward, too.
        model: prices ops.
    """
    ways = {}
    for left, right in splits_of(tree):
        step = step_of(network, left, right)
        wanted, times = grads(network, left, right, mode), runs(network, left | right, mode)
        way = best_way(step, network, model, wanted, times)[1]
        if way != ways_of(step, network)[0]:
            ways[left | right] = way
    return ways


def _plain(step: Step, network: Network) -> bool:
    """A convolution of at most three axes whose features are all on the larger side, not transposed, not wrapped."""
    left = left_is_larger(step, network)
    return len(step.joined) <= 3 and all(
        axis.features_left is left
        and not network.axes[axis.axis].window.transposed
        and not network.axes[axis.axis].window.circular
        for axis in step.joined
    )


def _taps_fit(step: Step, network: Network) -> bool:
    """Few kernel positions, and no padding beyond "same": there are no fewer products than output x kernel."""
    shrinks = all(axis.out.length <= _features(axis).length for axis in step.joined)
    return shrinks and prod(axis.kernel for axis in step.joined) <= _TAPS and _no_remainder(step, network)


def _band_fits(step: Step, network: Network) -> bool:
    """Small images and kernels without gaps: a matrix over positions is built by shifting the kernel."""
    gaps = any(axis.kernel > 1 and _kernel(axis).step != _features(axis).step for axis in step.joined)
    symbolic = any(network.axes[axis.axis].window.features.symbol for axis in step.joined)
    return not gaps and not symbolic and prod(_features(axis).length for axis in step.joined) <= _BAND


def _no_remainder(step: Step, network: Network) -> bool:
    """No stride over a symbolic size, which leaves positions at the end that nobody can count beforehand."""
    windows = [network.axes[axis.axis].window for axis in step.joined]
    return not any(window.features.symbol and window.stride > 1 for window in windows)


def _groups_fit(step: Step, network: Network) -> bool:
    """A kernel that has no channel of the features, which have some beside their batch; one symbolic size at most."""
    lead = step.left_free if left_is_larger(step, network) else step.right_free
    return not step.contracted and len(lead) > 1 and sum(bool(index.symbol) for index in lead) <= 1


_FITS: dict[Way, Callable[[Step, Network], bool]] = {
    "grouped": _groups_fit,
    "unfold": _no_remainder,
    "unfold_conv": _no_remainder,
    "taps": _taps_fit,
    "taps_conv": _taps_fit,
    "band": _band_fits,
}


def _features(axis: AxisStep) -> Grid:
    return axis.left if axis.features_left else axis.right


def _kernel(axis: AxisStep) -> Grid:
    return axis.right if axis.features_left else axis.left


class _Slide:
    """The sizes of a convolution that its prices are made of."""

    def __init__(self, step: Step, network: Network) -> None:
        def size(indices: tuple[Index, ...]) -> int:
            return prod(index.size for index in indices)

        first = left_is_larger(step, network)
        both = step.left | step.right
        free = (step.left_free, step.right_free) if first else (step.right_free, step.left_free)
        axes = (step.left_axes, step.right_axes) if first else (step.right_axes, step.left_axes)
        self.lead = size(free[0])
        self.batch = free[0][0].size if free[0] else 1
        self.groups = size(step.batch)
        self.channels = size(step.contracted)
        self.columns = size(free[1]) * prod(network.axis_length(axis, both) for axis in axes[1])
        self.rest = prod(network.axis_length(axis, both) for axis in axes[0])
        self.window = prod(axis.kernel for axis in step.joined)
        self.ins = prod(_features(axis).length for axis in step.joined)
        self.outs = prod(axis.out.length for axis in step.joined)
        self.line = step.joined[-1].out.length
        sides = (step.left, step.right) if first else (step.right, step.left)
        self.x, self.w = network.size(sides[0]), network.size(sides[1])
        self.y = network.size(both)

    def at_positions(self, reduce: int, columns: int, positions: int, elements: int, conv: bool) -> Op:
        """One matrix at all positions, for each group and entry of the lead; a matmul or a 1x1 convolution."""
        macs = self.lead * self.groups * reduce * columns * positions
        if conv:
            return Op(conv_family(reduce, columns, self.groups, 1), macs, reduce, columns, positions, elements)
        return Op("bmm", macs, reduce, positions, columns, elements)


def _copy(elements: int, run: int = 1) -> Op:
    return Op("copy", 0, 1, run, elements, 2 * elements)


def _grouped(s: _Slide) -> tuple[Op, ...]:
    channels = s.groups * s.lead // s.batch
    repeated = s.w * s.lead // s.batch
    macs = s.batch * channels * s.window * s.columns * s.rest * s.outs
    family = conv_family(1, s.columns, channels, s.window)
    return (_copy(repeated, s.w), Op(family, macs, s.window, s.columns, s.rest * s.outs, s.x + repeated + s.y))


def _unfold(s: _Slide, conv: bool = False) -> tuple[Op, ...]:
    windows = s.lead * s.groups * s.channels * s.window * s.rest * s.outs
    elements = windows + s.w + s.y
    product = s.at_positions(s.channels * s.window, s.columns, s.rest * s.outs, elements, conv)
    return (_copy(s.x, s.line), _copy(windows, s.line), _copy(s.w), product)


def _taps(s: _Slide, conv: bool = False) -> tuple[Op, ...]:
    shifted = s.lead * s.groups * s.columns * s.window * s.rest * s.ins
    product = s.at_positions(s.channels, s.columns * s.window, s.rest * s.ins, s.x + s.w + shifted, conv)
    add = Op("add", 0, 1, 1, s.y, 3 * s.y)
    return (_copy(s.w), product, _copy(shifted, s.line), *(add for _ in range(s.window - 1)))


def _band(s: _Slide) -> tuple[Op, ...]:
    spread = s.w // max(1, s.window) * s.ins * s.outs
    rows, columns = s.lead * s.rest, s.columns * s.outs
    macs = s.groups * s.channels * s.ins * columns * rows
    family = "bmm" if s.groups > 1 else "mm"
    product = Op(family, macs, s.channels * s.ins, columns, rows, s.x + spread + s.y)
    return (_copy(s.w), _copy(spread, s.line), product)


_PRICES: dict[Way, Callable[[_Slide], tuple[Op, ...]]] = {
    "grouped": _grouped,
    "unfold": _unfold,
    "unfold_conv": partial(_unfold, conv=True),
    "taps": _taps,
    "taps_conv": partial(_taps, conv=True),
    "band": _band,
}
