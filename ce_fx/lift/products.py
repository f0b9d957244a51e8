"""Products of expressions: unify the axes that mean the same coordinate, and multiply.

Every contraction (einsum, matmul, linear, tensordot, broadcast multiply) is one call of `contract`; a convolution
unifies its channel axes with `Builder` and adds its windows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from ce_fx.algebra import (
    Axis,
    Expression,
    Index,
    Term,
    Window,
    axis_size,
    flat,
    substitute,
)
from ce_fx.algebra.regroup import Fresh, Table, regroup, unify
from ce_fx.lift.refusal import Refusal


class Refused(Exception):
    """Unwinds a builder; caught in this package only, where it becomes a Refusal."""


class Builder:
    """Several expressions, whose indices are unified step by step.

    Axes are read back with `axis` after every change, since splitting an index renames it everywhere.

    Raises:
        Refused: from every method, with the reason, where the algebra has no exact form.
    """

    def __init__(self, expressions: Sequence[Expression], fresh: Fresh) -> None:
        for expression in expressions:
            if len(expression.terms) != 1:
                raise Refused("a sum feeds a product")
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

    def join(self, left: tuple[int, int], right: tuple[int, int]) -> None:
        """Make two axes, given as (operand, dim), the same coordinate."""
        a, b = self.axis(*left), self.axis(*right)
        result = unify(a, b, self.fresh)
        if isinstance(result, str):
            raise Refused(result)
        left_table, right_table, common = result
        if common and (self._windowed(left[0], a) or self._windowed(right[0], b)):
            raise Refused("a position axis of a convolution meets another tensor")
        self._apply(left[0], left_table)
        self._apply(right[0], right_table)

    def product(self, axes: tuple[Axis, ...], windows: tuple[Window, ...] = ()) -> Expression:
        """The product of all operands over some output axes, with windows to add."""
        terms = [expression.terms[0] for expression in self.expressions]
        factors = tuple(factor for term in terms for factor in term.factors)
        coefficient = 1
        for term in terms:
            coefficient *= term.coefficient  # type: ignore[assignment]
        windows = tuple(w for term in terms for w in term.windows) + windows
        axes = _with_positions(axes, windows)
        return Expression(axes, (Term(factors, windows, coefficient),))

    def _apply(self, operand: int, table: Table) -> None:
        """Substitute in one operand, and wherever else its indices have come to stand."""
        for n, expression in enumerate(self.expressions):
            if n == operand or not table.keys().isdisjoint(_indices(expression)):
                if any(i in table and len(table[i]) != 1 for i in _window_indices(expression)):
                    raise Refused("a position axis of a convolution is split")
                self.expressions[n] = substitute(expression, table)

    def _windowed(self, operand: int, axis: Axis) -> bool:
        windowed = _window_indices(self.expressions[operand])
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


def add_bias(expression: Expression, dim: int, bias: Expression, fresh: Fresh) -> Expression | Refusal:
    """`expression + bias`, the 1-d bias along one axis: one more term, constant on the other axes."""
    result = unify(expression.axes[dim], bias.axes[0], fresh)
    if isinstance(result, str):
        return Refusal(result)
    left, right, _ = result
    if any(i in left for i in _window_indices(expression)):
        return Refusal("a position axis of a convolution is split")
    expression = substitute(expression, left)
    return replace(expression, terms=expression.terms + substitute(bias, right).terms)


def drop_ones(expression: Expression) -> Expression:
    """The same function without indices of size 1, except those of windows."""
    windowed = _window_indices(expression)
    ones: dict[Index, Axis] = {
        i: () for i in _indices(expression) if i.size == 1 and not i.symbol and i not in windowed
    }
    return substitute(expression, ones)


def lone_index(builder: Builder, operand: int, dim: int, name: str) -> Index:
    """The one index of an axis that a window is to use, held by one factor or given by one window.

    An axis of size 1 gets an index of its own on some factor.

    Raises:
        Refused: the axis has several indices, a symbolic one, or one that several factors share.
    """
    axis = builder.axis(operand, dim)
    if not axis:
        axis = _attach_one(builder, operand, dim, name)
    if len(axis) > 1:
        raise Refused("a convolution slides over several merged axes")
    term = builder.expressions[operand].terms[0]
    index = axis[0]
    if index.symbol:
        raise Refused(f"a convolution slides over the symbolic size {index.symbol}")
    holders = sum(flat(f.axes).count(index) for f in term.factors) + sum(w.out == index for w in term.windows)
    if holders != 1:
        raise Refused("a convolution slides over an axis that several factors share or none has")
    return index


def _attach_one(builder: Builder, operand: int, dim: int, name: str) -> Axis:
    expression = builder.expressions[operand]
    term = expression.terms[0]
    index = builder.fresh(name, 1)
    first = term.factors[0]
    if not first.axes:
        raise Refused("a convolution slides over a scalar")
    factor = replace(first, axes=(*first.axes[:-1], (*first.axes[-1], index)))
    axes = (*expression.axes[:dim], (index,), *expression.axes[dim + 1 :])
    builder.expressions[operand] = Expression(axes, (replace(term, factors=(factor, *term.factors[1:])),))
    return (index,)


def _with_positions(axes: tuple[Axis, ...], windows: Sequence[Window]) -> tuple[Axis, ...]:
    """Output axes that hold the output index of every window; one with a single position may ride on any axis."""
    kept = set(flat(axes))
    lost = tuple(dict.fromkeys(w.out for w in windows if w.out not in kept))
    if any(index.size != 1 for index in lost):
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
