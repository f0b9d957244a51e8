"""A product of tensors as a planner sees it: operands, index masks, convolution axes, and exact sizes and costs.

Everything here is a function of operand *subsets* (bit sets of operand numbers), so a search may combine them freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ce_fx.algebra import Axes, Index, Term, Window, flat
from ce_fx.plan.grid import Grid, features_grid, kernel_grid


@dataclass(frozen=True)
class Operand:
    """What a planner must know of a leaf beside its indices.

    Attributes:
        constant: depends on weights only (may be folded in eval).
        needs_grad: a gradient flows into it when training.
    """

    constant: bool = False
    needs_grad: bool = False


@dataclass(frozen=True)
class ConvAxis:
    """One window and the operands on it.

    Attributes:
        window: the relation.
        features: operand number of the features.
        kernels: operand number of each tap of the window, in the window's order.
    """

    window: Window
    features: int
    kernels: tuple[int, ...]

    @property
    def operands(self) -> int:
        """Bit set of the operands on this axis."""
        return sum(1 << n for n in {self.features, *self.kernels})


class Network:
    """A single product with its output: the input of every planner.

    Operand `n` is `term.factors[n]`. Subsets of operands are bit sets. Sizes are in elements, costs in multiply-adds.

    Raises:
        ValueError: a window is not of the form one features operand and at least one kernel, each kernel index in one
            operand, or an index of a window occurs elsewhere too. (Lift and parser never make such a term.)
    """

    def __init__(self, term: Term, output: Axes, operands: Sequence[Operand] = ()) -> None:
        self.term = term
        self.output = output
        self.operands = tuple(operands) or (Operand(),) * len(term.factors)
        self.n = len(term.factors)
        self.everything = (1 << self.n) - 1
        holders: dict[Index, list[int]] = {}
        for n, factor in enumerate(term.factors):
            for index in factor.indices:
                holders.setdefault(index, []).append(n)
        self.axes = tuple(_conv_axis(w, holders) for w in term.windows)
        in_windows = {i for w in term.windows for i in (w.features, w.out, *(t.index for t in w.taps))}
        _check_windows(term, in_windows, holders)
        self.indices = tuple(dict.fromkeys(i for f in term.factors for i in flat(f.axes) if i not in in_windows))
        self.bit = {index: 1 << b for b, index in enumerate(self.indices)}
        self.masks = tuple(sum(self.bit[i] for i in f.indices if i in self.bit) for f in term.factors)
        self.out_mask = sum(self.bit[i] for i in set(flat(output)) if i in self.bit)
        self.constant = sum(1 << n for n, o in enumerate(self.operands) if o.constant)
        self.differentiable = sum(1 << n for n, o in enumerate(self.operands) if o.needs_grad)
        self._sizes = tuple(index.size for index in self.indices)
        self._prods: dict[int, int] = {0: 1}
        self._touched: dict[int, int] = {0: 0}
        self._keep: dict[int, int] = {}
        self._elements: dict[int, int] = {}
        self._grids: list[dict[int, Grid | None]] = [{} for _ in self.axes]
        self._axis_masks = tuple(axis.operands for axis in self.axes)
        self._axis_costs: list[dict[tuple[int, int], int]] = [{} for _ in self.axes]

    def touched(self, subset: int) -> int:
        """Mask of the ordinary indices that occur in a subset of operands."""
        mask = self._touched.get(subset)
        if mask is None:
            mask, rest = 0, subset
            while rest:
                mask |= self.masks[(rest & -rest).bit_length() - 1]
                rest &= rest - 1
            self._touched[subset] = mask
        return mask

    def keep(self, subset: int) -> int:
        """Mask of the ordinary indices that the intermediate of a subset still has: those used elsewhere."""
        kept = self._keep.get(subset)
        if kept is None:
            kept = self.touched(subset) & (self.out_mask | self.touched(self.everything & ~subset))
            self._keep[subset] = kept
        return kept

    def prod(self, mask: int) -> int:
        """Product of the sizes of the ordinary indices in a mask."""
        value = self._prods.get(mask)
        if value is None:
            value = prod(size for b, size in enumerate(self._sizes) if mask >> b & 1)
            self._prods[mask] = value
        return value

    def grid(self, axis: int, subset: int) -> Grid | None:
        """The positions that a subset's intermediate stores on a convolution axis; None if it has no part in it."""
        here = subset & self._axis_masks[axis]
        table = self._grids[axis]
        if here not in table:
            table[here] = _grid(self.axes[axis], here)
        return table[here]

    def axis_length(self, axis: int, subset: int) -> int:
        """Length of a subset's intermediate on a convolution axis; 1 if it has no part in it."""
        grid = self.grid(axis, subset)
        return 1 if grid is None else grid.length

    def size(self, subset: int) -> int:
        """Elements of the intermediate of a subset (of the operand, once its private indices are summed)."""
        elements = self._elements.get(subset)
        if elements is None:
            elements = self.prod(self.keep(subset))
            for axis in range(len(self.axes)):
                elements *= self.axis_length(axis, subset)
            self._elements[subset] = elements
        return elements

    def operand_size(self, n: int) -> int:
        """Elements of an operand as it is given."""
        return prod(index.size for index in flat(self.term.factors[n].axes))

    def flops(self, left: int, right: int) -> int:
        """Multiply-adds of the step that joins two disjoint subsets.

        The product over all distinct indices of the two, where a convolution axis counts (output size of the step) x
        (kernel size), or `K_a * K_b` where two kernels merge. An index in one operand alone, and not in the output,
        was summed before, at no multiply-add.
        """
        return self.prod(self.keep(left) | self.keep(right)) * self.axis_flops(left, right)

    def axis_flops(self, left: int, right: int) -> int:
        """The factor of `flops` that the convolution axes make."""
        cost = 1
        for axis in range(len(self.axes)):
            cost *= self._axis_cost(axis, left, right)
        return cost

    def _axis_cost(self, axis: int, left: int, right: int) -> int:
        mask = self._axis_masks[axis]
        key = (left & mask, right & mask)
        table = self._axis_costs[axis]
        if key not in table:
            a, b = self.grid(axis, left), self.grid(axis, right)
            if a is None or b is None:
                table[key] = self.axis_length(axis, left | right)
            else:
                features = 1 << self.axes[axis].features
                lengths = (a.length, b.length)
                if features & (left | right):
                    kernel = b if features & left else a
                    lengths = (self.axis_length(axis, left | right), kernel.length)
                table[key] = lengths[0] * lengths[1]
        return table[key]


def _grid(axis: ConvAxis, here: int) -> Grid | None:
    if not here:
        return None
    taps = tuple(zip(axis.window.taps, axis.kernels, strict=True))
    inside = tuple(tap for tap, n in taps if here >> n & 1)
    if not here >> axis.features & 1:
        return kernel_grid(inside)
    return features_grid(axis.window, inside, tuple(tap for tap, n in taps if not here >> n & 1))


def _conv_axis(window: Window, holders: dict[Index, list[int]]) -> ConvAxis:
    features = holders.get(window.features, [])
    kernels = [holders.get(tap.index, []) for tap in window.taps]
    if len(features) != 1 or any(len(k) != 1 for k in kernels) or not kernels:
        raise ValueError(f"window {window} needs one features operand and one operand for each kernel index")
    numbers = [k[0] for k in kernels]
    if len(set(numbers)) != len(numbers) or features[0] in numbers:
        raise ValueError(f"window {window}: its features and kernels must be different operands")
    if window.transposed and len(kernels) > 1:
        raise ValueError(f"window {window}: a transposed window takes one kernel")
    return ConvAxis(window, features[0], tuple(numbers))


def _check_windows(term: Term, in_windows: set[Index], holders: dict[Index, list[int]]) -> None:
    used = [i for w in term.windows for i in (w.features, w.out, *(t.index for t in w.taps))]
    if len(used) != len(in_windows):
        raise ValueError("an index occurs in two windows, or twice in one")
    for window in term.windows:
        if window.out in holders:
            raise ValueError(f"window {window}: its output index is held by operand {holders[window.out][0]} too")
    for n, factor in enumerate(term.factors):
        indices = [i for i in flat(factor.axes) if i in in_windows]
        if len(indices) != len(set(indices)):
            raise ValueError(f"operand {n} holds an index of a window twice")
