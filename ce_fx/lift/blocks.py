"""Slices, concatenations and zero padding: relations of two indices, and how they vanish.

All three are windows without a kernel, `i = stride*o - pad`, zero outside: a slice reads part of i, a part of a
concatenation or a padded tensor fills part of o. While a region grows they stay in its expression as they are. Once it
is whole they are resolved: a factor that holds either index is narrowed to the positions that meet, and one index
takes the place of both. So a contraction over concatenated channels becomes a sum with slices of the weight, and a
slice of a convolution's channels slices its kernel. What fills a part of the *result* cannot be resolved; there the
region ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ce_fx.algebra import Axes, Axis, Expression, Factor, Index, Term, Window, axis_size, flat, substitute
from ce_fx.lift.products import Builder, Refused, add, holders, lone_index, slid
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands
from ce_fx.lift.roll import rolled
from ce_fx.lift.steps import box, merged, times

Narrow: TypeAlias = "Callable[[int, Part], int]"
"""Gives the number of a leaf that is a part of another."""


@dataclass(frozen=True)
class Part:
    """Positions `start, start + step, ..` of one dim of a leaf.

    Attributes:
        shape: what the leaf is reshaped to first, None where that is its shape.
        dim, start, length, step: as in `torch.narrow`, with a step.
    """

    shape: tuple[int, ...] | None
    dim: int
    start: int
    length: int
    step: int


def mapped(
    expression: Expression, dim: int, size: Any, stride: int, pad: int, operands: Operands
) -> Expression | Refusal:
    """One axis read through `i = stride*o - pad`, zero outside: `size` positions of a slice or of a padded axis.

    The size may be symbolic where the axis is padded.
    """
    try:
        builder = Builder((expression,), operands.fresh)
        index = lone_index(builder, 0, dim, "i")
        out = operands.sized(index.name, size)
        window = Window(index, out, (), stride, pad)
        expression = builder.expressions[0]
        terms = tuple(new for term in expression.terms if (new := _mapped(term, window, operands)) is not None)
        if not terms:
            return Refusal("nothing of a tensor is left but zeros")
    except Refused as refused:
        return Refusal(str(refused))
    return Expression((*expression.axes[:dim], (out,), *expression.axes[dim + 1 :]), terms)


def written_over(
    expression: Expression, dim: int, start: int, value: Expression, length: int, operands: Operands
) -> Expression | Refusal:
    """A tensor with `value` in place of `length` positions of one axis: what is left of it and what is new, added."""
    stop = start + length
    try:
        builder = Builder((expression,), operands.fresh)
        index = lone_index(builder, 0, dim, "i")
        expression = builder.expressions[0]
        left = [_cleared(term, index, start, stop, operands) for term in expression.terms]
        rest = Expression(expression.axes, tuple(term for term in left if term is not None))
        if any(_holds(value, one) for one in value.axes[dim]):
            placed = mapped(value, dim, index.size, 1, start, operands)
            if isinstance(placed, Refusal):
                return placed
        else:
            inside = box(index.size, start, stop)
            terms = tuple(times(term, index, inside, operands) for term in value.terms)
            axes = (*value.axes[:dim], (index,), *value.axes[dim + 1 :])
            placed = Expression(axes, tuple(term for term in terms if term is not None))
        if not rest.terms:
            return placed
        total = add(rest, placed, operands.fresh)
        return total if isinstance(total, Refusal) else merged(total, operands)
    except Refused as refused:
        return Refusal(str(refused))


def _cleared(term: Term, index: Index, start: int, stop: int, operands: Operands) -> Term | None:
    """The term with zeros at some positions of an axis; as it is where it is zero there anyway."""
    window = next((w for w in term.windows if w.out == index and not w.taps), None)
    if window is not None:
        _, first, length = _meeting(window)
        if first >= stop or first + length <= start:
            return term
    return times(term, index, tuple(1 - one for one in box(index.size, start, stop)), operands)


def _holds(expression: Expression, index: Index) -> bool:
    return any(holders(term, index) for term in expression.terms)


def _mapped(term: Term, window: Window, operands: Operands) -> Term | None:
    held = holders(term, window.features)
    if held > 1 and all(w.out != window.features for w in term.windows):
        return replace(term, windows=(*term.windows, window))  # each factor is narrowed
    result = slid(term, window)
    if result is not None:
        return result
    if window.out.symbol:
        raise Refused(f"a constant is padded to the symbolic size {window.out.symbol}")
    _, first, length = _meeting(window)
    if length >= window.out.size:
        return term
    return times(term, window.out, box(window.out.size, first, first + length), operands)


def resolved(expression: Expression, narrow: Narrow, fresh: Callable[[str, int], Index]) -> Expression | Refusal:
    """The same function without windows that have no kernel.

    Args:
        expression: what a region computes.
        narrow: gives the number of a leaf that is a part of another.
        fresh: makes an index.
    """
    expression = rolled(expression, fresh)
    kept = frozenset(flat(expression.axes))
    terms: list[Term] = []
    for term in expression.terms:
        result: Term | None | Refusal = term
        while isinstance(result, Term) and any(not w.taps for w in result.windows):
            result = _resolved(result, kept, narrow, fresh)
        if isinstance(result, Refusal):
            return result
        if result is not None:
            terms.append(result)
    return replace(expression, terms=tuple(terms)) if terms else Refusal("a sum that is zero")


def _resolved(
    term: Term, kept: frozenset[Index], narrow: Narrow, fresh: Callable[[str, int], Index]
) -> Term | None | Refusal:
    """The term with one relation resolved; None where no positions meet."""
    window = next(w for w in term.windows if not w.taps)
    i, o = window.features, window.out
    if i.symbol or o.symbol:
        return Refusal(f"an axis is padded to the symbolic size {o.symbol or o.size}, and no convolution follows")
    first_i, first_o, length = _meeting(window)
    if length <= 0:
        return None
    if o in kept and length < o.size:
        return Refusal("tensors are concatenated or padded, and nothing contracts the axis")
    if any(w is not window and i in (w.features, *(t.index for t in w.taps)) for w in term.windows):
        return Refusal("a part of an axis that a convolution slides over")
    both = o if o in kept else fresh(i.name, length)
    factors = []
    for factor in term.factors:
        for index, start, step in ((i, first_i, window.stride), (o, first_o, 1)):
            if index in factor.indices:
                factor = _narrowed(factor, index, Part(None, 0, start, length, step), both, narrow)
        factors.append(factor)
    windows = tuple(w for w in term.windows if w is not window)
    whole = Term(tuple(factors), windows, term.coefficient)
    return substitute(Expression((), (whole,)), {o: (both,)}).terms[0]


def _meeting(window: Window) -> tuple[int, int, int]:
    """The first positions of i and o that meet, and how many do."""
    first = max(0, -(-window.pad // window.stride))
    last = min(window.out.size - 1, (window.features.size - 1 + window.pad) // window.stride)
    return window.stride * first - window.pad, first, last - first + 1


def _narrowed(factor: Factor, index: Index, part: Part, name: Index, narrow: Narrow) -> Factor:
    """The factor at some positions of an index, which gets a new name."""
    if (part.start, part.length, part.step) == (0, index.size, 1):
        return Factor(factor.leaf, tuple(_renamed(axis, index, name) for axis in factor.axes))
    alone = all(index not in axis or axis == (index,) for axis in factor.axes)
    axes: Axes = factor.axes if alone else tuple((one,) for one in flat(factor.axes))
    shape = None if alone else tuple(map(axis_size, axes))
    leaf = factor.leaf
    for dim, axis in enumerate(axes):
        if axis == (index,):
            leaf = narrow(leaf, replace(part, shape=shape, dim=dim))
            shape = None
    return Factor(leaf, tuple(_renamed(axis, index, name) for axis in axes))


def _renamed(axis: Axis, index: Index, name: Index) -> Axis:
    return tuple(name if one == index else one for one in axis)
