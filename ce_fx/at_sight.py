"""What can be told of a region at sight, before anything is planned."""

from __future__ import annotations

from math import prod

from ce_fx.algebra import Term, axis_size
from ce_fx.lift.region import Region
from ce_fx.lower.price import is_convolution, ops_of_nodes


def holds_product(region: Region) -> bool:
    """Whether a region multiplies tensors."""
    return max(len(term.factors) for term in region.expression.terms) > 1


def nothing_to_reorder(region: Region) -> str | None:
    """Why no order can differ by more than scalings; None where one can.

    Every product has one kernel at most beside what it is applied to and scalings of the result's axes, and no two
    products with kernels are of the same leaf.
    """
    expression = region.expression
    if sum(op.macs > 0 for op in ops_of_nodes(region.ops)) > len(expression.terms):
        return None
    met: set[int] = set()
    busy = 0
    kept = {index for axis in expression.axes for index in axis}
    for term in expression.terms:
        if any(len(w.taps) > 1 for w in term.windows):
            return None
        slid = {i for w in term.windows for i in (w.features, *(tap.index for tap in w.taps))}
        for index in term.indices - kept - slid:
            held = [f for f in term.factors if index in f.indices]
            if index.size > 1 and (len(held) < 2 or any(sum(axis_size(a) > 1 for a in f.axes) < 2 for f in held)):
                return None
        wide = [factor.leaf for factor in term.factors if sum(axis_size(axis) > 1 for axis in factor.axes) > 1]
        if len(wide) > 2 or (len(wide) == 2 and met.intersection(wide)):
            return None
        if len(wide) == 2:
            met.update(wide)
            busy += 1
    kind = "convolution" if any(term.windows for term in expression.terms) else "contraction"
    return f"one {kind}" if busy < 2 else f"{busy} separate {kind}s"


def convolves(region: Region) -> bool:
    """Whether a convolution is written."""
    return any(map(is_convolution, region.ops))


def has_scalings(region: Region) -> bool:
    """Whether weights meet weights: a kernel that is scaled, or two numbers that are added per channel."""
    terms = region.expression.terms
    scaled = any(len(term.factors) > 2 or term.coefficient != 1 for term in terms)
    return scaled or sum(len(term.factors) < 2 for term in terms) > 1


def length(region: Region) -> int:
    """Products that are added up for one output element, for the rounding to expect."""
    kept = {index for axis in region.expression.axes for index in axis}

    def summed_up(term: Term) -> int:
        summed = [i for i in term.indices if i not in kept and not any(i == w.features for w in term.windows)]
        return prod(index.size for index in summed)

    return sum(map(summed_up, region.expression.terms))
