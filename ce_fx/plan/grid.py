"""How long an intermediate is on a convolution axis: a function of which operands it holds, and of nothing else.

PLANNER theory in one table. For one axis `i = s*o + sum_j d_j*k_j - p`, features zero outside `[0, I)`; an
intermediate holds the features or not, and the kernels J; R are the kernels it does not hold; pos(J) is the set of
sums `sum_J d_j*k_j`:

    nothing                 -> None
    kernels J only          -> the composed kernel: step g = gcd(d_J), length 1 + sum_J (d_j/g)*(K_j - 1)
    features, J empty       -> [0, I)
    features, R empty       -> the output positions s*o - p: the stride comes with the last kernel
    features, both          -> z[t] = sum_J x[t + pos(J)] for t in need & support, with
                               need = {s*o - p} + pos(R), support = [0, I) - pos(J),
                               as a grid of step gcd(s, d_R): a stride comes early exactly where it divides what is left

So sizes and costs of a step are functions of the two operand sets, and a search over subsets is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from ce_fx.algebra import Tap, Window


@dataclass(frozen=True)
class Grid:
    """Positions `start + step*n` for `n` in `[0, length)`, in units of the window's features.

    For a kernel the start is 0 and the step its dilation. For a transposed window the positions are those of
    `out + pad`.
    """

    start: int
    step: int
    length: int


def kernel_grid(taps: tuple[Tap, ...]) -> Grid:
    """The grid of a composed kernel: `sum_j d_j*k_j` lies on multiples of the gcd of the dilations.

    Kernels that are one wide have no dilation to speak of.
    """
    step = gcd(*(t.dilation for t in taps if t.index.size > 1)) or 1
    return Grid(0, step, 1 + sum(t.reach for t in taps) // step)


def features_grid(window: Window, inside: tuple[Tap, ...], outside: tuple[Tap, ...]) -> Grid:
    """The grid of an intermediate that holds the features and the kernels `inside`, but not those `outside`.

    Args:
        window: the axis.
        inside: the taps that have been applied.
        outside: the taps still to come; together they are `window.taps`.

    Returns:
        The positions to store. Never empty: where no needed position can be non-zero, one needed position is kept.
        Over a symbolic size all that are needed: which of them are never non-zero depends on the size.
    """
    size, out = window.features.size, window.out.size
    if window.features.symbol and inside and outside:  # of stride 1, see `compose`
        return Grid(-window.pad, 1, out + sum(t.reach for t in outside))
    if not inside and outside:
        return Grid(0, 1, size)
    if window.transposed:  # one kernel at most, see Network
        return Grid(window.pad, 1, out)
    if not outside:
        return Grid(-window.pad, window.stride, out)
    if window.circular:
        return Grid(0, 1, size)
    strides = (window.stride,) if out > 1 else ()
    step = gcd(*strides, *(t.dilation for t in outside if t.index.size > 1)) or 1
    needed = _needed(window, outside)  # bit n: position n - pad
    reach = sum(t.reach for t in inside)
    support = ((1 << size) - 1) << reach  # bit n: position n - reach
    for tap in inside:
        support = _spread(support, tap, backwards=True)
    shift = reach - window.pad
    both = needed & (support >> shift if shift >= 0 else support << -shift)
    if not both:
        both = needed & -needed
    low = (both & -both).bit_length() - 1
    high = both.bit_length() - 1
    return Grid(low - window.pad, step, (high - low) // step + 1)


def _needed(window: Window, outside: tuple[Tap, ...]) -> int:
    """Bit set of the positions `s*o + pos(outside)`; bit 0 is position -pad."""
    bits = 0
    for o in range(window.out.size):
        bits |= 1 << (window.stride * o)
    for tap in outside:
        bits = _spread(bits, tap)
    return bits or 1


def _spread(bits: int, tap: Tap, *, backwards: bool = False) -> int:
    """The bit set `bits + dilation*[0, K)`, or minus it."""
    spread = 0
    for k in range(tap.index.size):
        spread |= bits >> (tap.dilation * k) if backwards else bits << (tap.dilation * k)
    return spread
