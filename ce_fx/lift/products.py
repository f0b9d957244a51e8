"""Products and sums of expressions: unify the axes that mean the same coordinate, and multiply or add.

Every contraction (einsum, matmul, linear, tensordot, broadcast multiply) is one call of `contract`; a convolution
unifies its channel axes with `Builder` and adds its windows. A product of sums is distributed: an expression is always
a flat sum of products, and the planner factors it again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import product as combinations
from math import prod

from ce_fx.algebra import (
    Axis,
    Expression,
    Index,
    Term,
    Window,
    axis_size,
    compose,
    flat,
    substitute,
)
from ce_fx.algebra.canonical import collected
from ce_fx.algebra.regroup import Fresh, Table, regroup, unify
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.roll import rounds

MOST = 64
"""Products in one sum; a region does not grow beyond, unless they are rounds of a loop that becomes one product."""

LONGEST = 256
"""Rounds of a loop that was unrolled; each is added to the sum of those before."""


class Refused(Exception):
    """Unwinds a builder; caught in this package only, where it becomes a Refusal."""


class Builder:
    """Several expressions, whose indices are unified step by step.

    Axes are read back with `axis` after every change, since splitting an index renames it everywhere.

    Raises:
        Refused: from every method, with the reason, where the algebra has no exact form.
    """

    def __init__(self, expressions: Sequence[Expression], fresh: Fresh) -> None:
        self.expressions = list(expressions)
        self.fresh = fresh

    def axis(self, operand: int, dim: int) -> Axis:
        """The current indices of an operand's axis."""
        return self.expressions[operand].axes[dim]

    def split(self, operand: int, dim: int, shape: Sequence[int]) -> None:
        """Split one axis of an operand into several: its later axes move to the right."""
        expression = self.expressions[operand]
        result = regroup((expression.axes[dim],), shape, self.fresh)
        if isinstance(result, str):
            raise Refused(result)
        table, new = result
        self._apply(operand, table)
        axes = self.expressions[operand].axes
        self.expressions[operand] = replace(self.expressions[operand], axes=(*axes[:dim], *new, *axes[dim + 1 :]))

    def join(self, left: tuple[int, int], right: tuple[int, int], add: bool = False) -> None:
        """Make two axes, given as (operand, dim), the same coordinate; positions only where the operands are added."""
        a, b = self.axis(*left), self.axis(*right)
        result = unify(a, b, self.fresh)
        if isinstance(result, str):
            raise Refused(result)
        left_table, right_table, common = result
        if not add and common and (self._windowed(left[0], a) or self._windowed(right[0], b)):
            raise Refused("a position axis of a convolution meets another tensor")
        self._apply(left[0], left_table)
        self._apply(right[0], right_table)

    def product(self, axes: tuple[Axis, ...]) -> Expression:
        """The product of all operands over some output axes: every product of one term of each."""
        if prod(len(expression.terms) for expression in self.expressions) > LONGEST:
            raise Refused(f"more than {MOST} products in one sum")
        kept = set(flat(axes))
        summed = {i for expression in self.expressions for i in flat(expression.axes) if i not in kept}
        groups = combinations(*(expression.terms for expression in self.expressions))
        return _total(axes, (_multiplied(group, summed) for group in groups))

    def total(self, axes: tuple[Axis, ...]) -> Expression:
        """The sum of all operands over common axes."""
        return _total(axes, (term for expression in self.expressions for term in expression.terms))

    def _apply(self, operand: int, table: Table) -> None:
        """Substitute in one operand, and wherever else its indices have come to stand."""
        for n, expression in enumerate(self.expressions):
            if n == operand or not table.keys().isdisjoint(_indices(expression)):
                if any(i in table and len(table[i]) != 1 for i in _window_indices(expression)):
                    raise Refused("a position axis of a convolution is split")
                self.expressions[n] = substitute(expression, table)

    def _windowed(self, operand: int, axis: Axis) -> bool:
        windows = [w for term in self.expressions[operand].terms for w in term.windows if w.taps]
        windowed = {i for w in windows for i in (w.features, w.out)}
        return any(index in windowed for index in axis if index.size != 1)


def contract(
    expressions: Sequence[Expression],
    labels: Sequence[Sequence[Hashable]],
    output: Sequence[Hashable],
    fresh: Fresh,
) -> Expression | Refusal:
    """An einsum over whole axes: equal labels are one coordinate, labels that are not in the output are summed.

    Args:
        expressions: the operands, single products.
        labels: one label per axis of each operand; axes of size 1 broadcast.
        output: labels of the output axes.
        fresh: makes new indices.
    """
    try:
        builder = Builder(expressions, fresh)
        home: dict[Hashable, tuple[int, int]] = {}
        for operand, names in enumerate(labels):
            for dim, label in enumerate(names):
                here = (operand, dim)
                if label not in home or not _nontrivial(builder.axis(*home[label])):
                    home[label] = here
                elif _nontrivial(builder.axis(*here)):
                    builder.join(home[label], here)
        return builder.product(tuple(builder.axis(*home[label]) for label in output))
    except Refused as refused:
        return Refusal(str(refused))


def elementwise(left: Expression, right: Expression, fresh: Fresh) -> Expression | Refusal:
    """`left * right`, position by position: axes are aligned at the last one, those of size 1 broadcast."""
    a, b = len(left.axes), len(right.axes)
    n = max(a, b)
    return contract((left, right), (range(n - a, n), range(n - b, n)), range(n), fresh)


def reshape(expression: Expression, shape: Sequence[int | str], fresh: Fresh) -> Expression | Refusal:
    """The same elements, row-major, under another shape."""
    result = regroup(expression.axes, shape, fresh)
    if isinstance(result, str):
        return Refusal(result)
    table, axes = result
    if any(i in table for i in _window_indices(expression)):
        return Refusal("a position axis of a convolution is split")
    try:
        axes = _with_positions(axes, [w for term in expression.terms for w in term.windows])
    except Refused as refused:
        return Refusal(str(refused))
    return replace(substitute(expression, table), axes=axes)


def add(left: Expression, right: Expression, fresh: Fresh) -> Expression | Refusal:
    """`left + right`: axes are aligned at the last one, those of size 1 broadcast."""
    try:
        builder = Builder((left, right), fresh)
        n = max(len(left.axes), len(right.axes))
        places: list[tuple[int, int]] = []
        for place in range(n):
            here = [(0, place - n + len(left.axes)), (1, place - n + len(right.axes))]
            here = [at for at in here if at[1] >= 0]
            wide = [at for at in here if _nontrivial(builder.axis(*at))]
            if len(wide) == 2:
                builder.join(wide[0], wide[1], add=True)
            places.append(wide[0] if wide else here[0])
        return builder.total(tuple(builder.axis(*place) for place in places))
    except Refused as refused:
        return Refusal(str(refused))


def add_bias(expression: Expression, dim: int, bias: Expression, fresh: Fresh) -> Expression | Refusal:
    """`expression + bias`, the 1-d bias along one axis: constant on the others."""
    after = len(expression.axes) - dim - 1
    return add(expression, replace(bias, axes=bias.axes + ((),) * after), fresh)


def drop_ones(expression: Expression) -> Expression:
    """The same function without indices of size 1, except those of windows."""
    windowed = _window_indices(expression)
    ones: dict[Index, Axis] = {
        i: () for i in _indices(expression) if i.size == 1 and not i.symbol and i not in windowed
    }
    return substitute(expression, ones)


def lone_index(builder: Builder, operand: int, dim: int, name: str) -> Index:
    """The one index of an axis that a window is to use.

    An axis of size 1 gets an index of its own on some factor of every term.

    Raises:
        Refused: the axis has several indices.
    """
    axis = builder.axis(operand, dim)
    if not axis:
        axis = _attach_one(builder, operand, dim, name)
    if len(axis) > 1:
        raise Refused("a convolution slides over several merged axes")
    return axis[0]


def holders(term: Term, index: Index) -> int:
    """How many times the factors of a term hold an index, and its windows give it."""
    return sum(flat(f.axes).count(index) for f in term.factors) + sum(w.out == index for w in term.windows)


def slid(term: Term, window: Window) -> Term | None:
    """A term with a window on one of its axes, composed with the one that gives the axis.

    Returns:
        The term; None where it does not depend on the axis.

    Raises:
        Refused: the windows do not compose, or several factors share the axis.
    """
    held = holders(term, window.features)
    if held > 1:
        raise Refused("a window over an axis that several factors share")
    inner = next((w for w in term.windows if w.out == window.features), None)
    if inner is None:
        return replace(term, windows=(*term.windows, window)) if held else None
    if window.taps and holders(term, inner.features) > 1:
        raise Refused("a window over an axis that several factors share")
    composed = compose(inner, window)
    if isinstance(composed, str):
        raise Refused(composed)
    return replace(term, windows=(*(w for w in term.windows if w is not inner), composed))


def _attach_one(builder: Builder, operand: int, dim: int, name: str) -> Axis:
    expression = builder.expressions[operand]
    index = builder.fresh(name, 1)
    terms = tuple(_with_one(term, index) for term in expression.terms)
    axes = (*expression.axes[:dim], (index,), *expression.axes[dim + 1 :])
    builder.expressions[operand] = Expression(axes, terms)
    return (index,)


def _with_one(term: Term, index: Index) -> Term:
    """The term with an index of size 1 on its first factor that has an axis."""
    for n, factor in enumerate(term.factors):
        if factor.axes:
            wider = replace(factor, axes=(*factor.axes[:-1], (*factor.axes[-1], index)))
            return replace(term, factors=(*term.factors[:n], wider, *term.factors[n + 1 :]))
    raise Refused("a convolution slides over a scalar")


def _multiplied(terms: Iterable[Term], summed: set[Index]) -> Term:
    """The product of some terms; a summed index that none of them has counts its positions."""
    terms = tuple(terms)
    factors = tuple(factor for term in terms for factor in term.factors)
    windows = tuple(window for term in terms for window in term.windows)
    whole = Term(factors, windows)
    coefficient: complex | float | int = prod(term.coefficient for term in terms)
    for index in summed - whole.indices:
        if index.symbol:
            raise Refused(f"a sum over the symbolic size {index.symbol} of what does not depend on it")
        coefficient *= index.size
    return replace(whole, coefficient=coefficient)


def _total(axes: tuple[Axis, ...], terms: Iterable[Term]) -> Expression:
    """Terms over common axes; equal ones are added up."""
    all_terms = tuple(terms)
    if len(all_terms) > LONGEST or (len(all_terms) > MOST and len(rounds(all_terms, flat(axes))) > MOST):
        raise Refused(f"more than {MOST} products in one sum")
    whole = collected(Expression(_with_positions(axes, [w for term in all_terms for w in term.windows]), all_terms))
    if not whole.terms:
        raise Refused("a sum that is zero")
    return whole


def _with_positions(axes: tuple[Axis, ...], windows: Sequence[Window]) -> tuple[Axis, ...]:
    """Output axes that hold the output index of every window; one with a single position may ride on any axis."""
    kept = set(flat(axes))
    lost = tuple(dict.fromkeys(w.out for w in windows if w.taps and w.out not in kept))
    if any(index.size != 1 or index.symbol for index in lost):
        raise Refused("the positions of a convolution are summed")
    if lost and not axes:
        raise Refused("a convolution with one position becomes a scalar")
    return (*axes[:-1], axes[-1] + lost) if lost else axes


def _nontrivial(axis: Axis) -> bool:
    return axis_size(axis) != 1 or any(index.symbol for index in axis)


def _indices(expression: Expression) -> frozenset[Index]:
    return frozenset(flat(expression.axes)).union(*(term.indices for term in expression.terms))


def _window_indices(expression: Expression) -> frozenset[Index]:
    return frozenset(
        i for t in expression.terms for w in t.windows for i in (w.features, w.out, *(tap.index for tap in w.taps))
    )
