"""Windows: the relation of a convolution axis, and when two of them are one.

A window ties a features index `i`, an output index `o` and kernel indices `k_j`:

    i = stride * o + sum_j dilation_j * k_j - pad          (torch's cross-correlation)
    o = stride * i + sum_j dilation_j * k_j - pad          (transposed: the same relation read backwards)

It contributes 1 where the relation holds with `0 <= i < I` and 0 elsewhere (features are zero outside; with
`circular=True` the relation is taken modulo I). A padding on the right needs no number of its own: it is implied by
the size of `o`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from ce_fx.algebra.index import Index


@dataclass(frozen=True)
class Tap:
    """A kernel index on a window, with its dilation (in positions of the features)."""

    index: Index
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Distance from the first to the last position that the kernel reads."""
        return self.dilation * (self.index.size - 1)


@dataclass(frozen=True)
class Window:
    """The relation of one convolution axis; see the module's docstring.

    Example: a 3-wide kernel with stride 2 and padding 1 over 8 positions,
    `Window(Index("i", 8), Index("o", 4), (Tap(Index("k", 3)),), stride=2, pad=1)`, reads `i = 2*o + k - 1`.
    """

    features: Index
    out: Index
    taps: tuple[Tap, ...]
    stride: int = 1
    pad: int = 0
    circular: bool = False
    transposed: bool = False

    @property
    def reach(self) -> int:
        """Distance from the first to the last position that the composed kernel reads: K - 1."""
        return sum(tap.reach for tap in self.taps)

    def __str__(self) -> str:
        taps = "".join(f" + {'' if t.dilation == 1 else f'{t.dilation}*'}{t.index}" for t in self.taps)
        whole, part = (self.out, self.features) if self.transposed else (self.features, self.out)
        stride = "" if self.stride == 1 else f"{self.stride}*"
        pad = f" - {self.pad}" if self.pad > 0 else f" + {-self.pad}" if self.pad else ""
        return f"{whole} = {stride}{part}{taps}{pad}" + (f" mod {self.features.size}" if self.circular else "")


def positions(taps: tuple[Tap, ...]) -> frozenset[int]:
    """All sums `sum_j dilation_j * k_j`: the offsets at which the composed kernel reads.

    The result holds at most `prod_j K_j` offsets; it is {0} for no kernels.
    """
    offsets = {0}
    for tap in taps:
        offsets = {offset + tap.dilation * k for offset, k in product(offsets, range(tap.index.size))}
    return frozenset(offsets)


def compose(first: Window, second: Window) -> Window | str:
    """One window equal to `second` after `first`, or the sentence that says why there is none.

    Identity: `i = s1*o1 + d1.k1 - p1` and `o1 = s2*o2 + d2.k2 - p2` give
    `i = s1*s2*o2 + d1.k1 + s1*d2.k2 - (p1 + s1*p2)`.

    Condition: every position outside `[0, O1)` that the second reads (there it reads zero) would read nothing but
    zeros through the first. It is checked position by position, so cropping, strides, dilation and asymmetric
    padding need no cases. Without it the result differs in a border ring: 3x3 pad 1 after 3x3 pad 1.

    Args:
        first: the inner window; its `out` is the second's `features`.
        second: the outer window.

    Returns:
        The composed window, or a reason.
    """
    if first.out != second.features:
        return f"the windows are not in series: one gives {first.out}, the other reads {second.features}"
    if first.circular or second.circular:
        return "a circular convolution does not compose with another on the same axis"
    if first.transposed or second.transposed:
        return "a transposed convolution does not compose with another window on the same axis"
    if first.features.symbol and (first.stride, second.stride) != (1, 1):
        return f"two kernels with strides slide over the symbolic size {first.features.symbol}"
    more = 4 * (first.reach + second.reach + abs(first.pad) + abs(second.pad) + 1)
    if not _borders_agree(_long(first, more), _long(second, more)):
        return "padding between two kernels on one axis: composing them would change the border"
    taps = first.taps + tuple(Tap(tap.index, first.stride * tap.dilation) for tap in second.taps)
    pad = first.pad + first.stride * second.pad
    return Window(first.features, second.out, taps, first.stride * second.stride, pad)


def _borders_agree(first: Window, second: Window) -> bool:
    """Whether what the second reads outside `[0, O1)` would be zero through the first, too."""
    low, high = -second.pad, second.stride * (second.out.size - 1) + second.reach - second.pad
    outside = [o1 for o1 in (*range(low, 0), *range(first.out.size, high + 1)) if _reads(second, o1)]
    offsets = positions(first.taps)
    return not any(0 <= first.stride * o1 + k - first.pad < first.features.size for o1 in outside for k in offsets)


def _long(window: Window, more: int) -> Window:
    """A window of stride 1 over a symbolic size, over so many more positions that its two borders do not meet.

    Composition that is exact there is exact over any size: of fewer positions the second reads no more outside them,
    and what is outside `[0, I)` by the kernels' reach stays outside.
    """
    if not window.features.symbol:
        return window
    longer = [replace(index, size=index.size + more) for index in (window.features, window.out)]
    return replace(window, features=longer[0], out=longer[1])


def _reads(window: Window, position: int) -> bool:
    """Whether any output of the window reads this position of its features."""
    for k in positions(window.taps):
        o, rest = divmod(position + window.pad - k, window.stride)
        if rest == 0 and 0 <= o < window.out.size:
            return True
    return False


def is_identity(window: Window) -> bool:
    """Whether the window, were its kernels one wide, would copy `i` to `o`: same size, stride 1, no padding."""
    same = window.features.size == window.out.size and window.features.symbol == window.out.symbol
    return same and window.stride == 1 and window.pad == 0 and all(t.index.size == 1 for t in window.taps)
