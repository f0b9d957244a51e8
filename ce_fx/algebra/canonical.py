"""One name for equal expressions: indices renamed in order of first use."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from ce_fx.algebra.expression import Expression, Term, substitute
from ce_fx.algebra.index import Axis, Index, flat


def canonical(expression: Expression) -> Expression:
    """The same function with indices named `i0`, `i1`, .. in order of first use.

    Two expressions that differ only in the names of their indices become equal.
    """
    numbers = count()
    table: dict[Index, Axis] = {}

    def see(index: Index) -> None:
        if index not in table:
            table[index] = (Index(f"i{next(numbers)}", index.size, index.symbol),)

    for term in expression.terms:
        for factor in term.factors:
            for index in flat(factor.axes):
                see(index)
        for window in term.windows:
            for index in (window.features, *(t.index for t in window.taps), window.out):
                see(index)
    for index in flat(expression.axes):
        see(index)
    return substitute(expression, table)


def collected(expression: Expression) -> Expression:
    """The same sum with equal products added up, and those that cancel left out.

    Products are equal if they are so with their factors in order of their leaves; two that differ by a symmetry may
    stay apart. The sum of none is an expression without terms.
    """
    if len(expression.terms) < 2:
        return expression
    coefficients: dict[object, complex | float | int] = {}
    first: dict[object, Term] = {}
    kept = frozenset(flat(expression.axes))
    for term in expression.terms:
        key = term_key(term, kept)
        coefficients[key] = coefficients.get(key, 0) + term.coefficient
        first.setdefault(key, term)
    terms = tuple(replace(first[key], coefficient=c) for key, c in coefficients.items() if c != 0)
    return replace(expression, terms=terms)


def term_key(term: Term, kept: frozenset[Index]) -> object:
    """Equal for equal products: factors by leaf, indices that are not in the output by first use."""
    numbers: dict[Index, Index] = {}

    def name(index: Index) -> Index:
        if index in kept:
            return index
        return numbers.setdefault(index, Index(f"i{len(numbers)}", index.size, index.symbol))

    factors = tuple(
        (f.leaf, tuple(tuple(map(name, axis)) for axis in f.axes)) for f in sorted(term.factors, key=lambda f: f.leaf)
    )
    windows = frozenset(
        replace(
            w,
            features=name(w.features),
            out=name(w.out),
            taps=tuple(sorted((replace(t, index=name(t.index)) for t in w.taps), key=lambda t: t.index)),
        )
        for w in term.windows
    )
    return factors, windows
