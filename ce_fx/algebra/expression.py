"""Terms and expressions: what a multilinear stretch of a network computes, as a value.

A `Term` is `coefficient * product of factors * product of windows`, summed over every index that is not in the
output. An `Expression` is a sum of terms with common output axes. Both are immutable and compare by value; a rewrite
is a function from one to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ce_fx.algebra.index import Axes, Axis, Index, flat
from ce_fx.algebra.window import Tap, Window


@dataclass(frozen=True)
class Factor:
    """A leaf tensor and the indices of its axes.

    Attributes:
        leaf: which tensor: its number among the leaves of the expression. A leaf may occur in several factors.
        axes: one axis (tuple of indices) per dimension of the tensor. A repeated index is a diagonal.
    """

    leaf: int
    axes: Axes

    @property
    def indices(self) -> frozenset[Index]:
        """The distinct indices of the factor."""
        return frozenset(flat(self.axes))


@dataclass(frozen=True)
class Term:
    """`coefficient * prod(factors) * prod(windows)`, summed over all indices that are not in the output."""

    factors: tuple[Factor, ...]
    windows: tuple[Window, ...] = ()
    coefficient: complex | float | int = 1

    @property
    def indices(self) -> frozenset[Index]:
        """The distinct indices of factors and windows."""
        windows = {index for w in self.windows for index in (w.features, w.out, *(t.index for t in w.taps))}
        return frozenset(windows).union(*(f.indices for f in self.factors))


@dataclass(frozen=True)
class Expression:
    """A sum of terms with common output axes.

    An output index that no factor of a term has (and no window gives) is a broadcast. `str(expression)` is its
    conv_einsum string, one per term.
    """

    axes: Axes
    terms: tuple[Term, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the output axes."""
        from math import prod

        return tuple(prod(i.size for i in axis) for axis in self.axes)

    def __str__(self) -> str:
        from ce_fx.algebra.printer import to_string

        return " + ".join(to_string(term, self.axes) for term in self.terms) or "0"


def leaf_expression(leaf: int, axes: Axes) -> Expression:
    """The expression of a plain tensor."""
    return Expression(axes, (Term((Factor(leaf, axes),)),))


def substitute_axis(axis: Axis, table: Mapping[Index, Axis]) -> Axis:
    """An axis with some indices replaced by a (row-major) tuple of others."""
    return tuple(new for index in axis for new in table.get(index, (index,)))


def substitute_axes(axes: Axes, table: Mapping[Index, Axis]) -> Axes:
    """Every axis of a tensor with some indices replaced."""
    return tuple(substitute_axis(axis, table) for axis in axes)


def substitute(expression: Expression, table: Mapping[Index, Axis]) -> Expression:
    """The same function, with indices renamed (to one index) or split (to several) everywhere they occur.

    Raises:
        ValueError: an index of a window would be split; a window's positions are not a product.
    """
    if not table:
        return expression
    terms = tuple(
        replace(
            term,
            factors=tuple(Factor(f.leaf, substitute_axes(f.axes, table)) for f in term.factors),
            windows=tuple(_substitute_window(w, table) for w in term.windows),
        )
        for term in expression.terms
    )
    return Expression(substitute_axes(expression.axes, table), terms)


def _substitute_window(window: Window, table: Mapping[Index, Axis]) -> Window:
    def one(index: Index) -> Index:
        new = table.get(index, (index,))
        if len(new) != 1:
            raise ValueError(f"index {index} is a convolution axis ({window}) and cannot be split")
        return new[0]

    taps = tuple(Tap(one(t.index), t.dilation) for t in window.taps)
    return replace(window, features=one(window.features), out=one(window.out), taps=taps)


def scale(expression: Expression, factor: complex | float | int) -> Expression:
    """`factor * expression`."""
    terms = tuple(replace(t, coefficient=t.coefficient * factor) for t in expression.terms)
    return replace(expression, terms=terms)
