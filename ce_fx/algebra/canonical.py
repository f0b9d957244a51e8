"""One name for equal expressions: indices renamed in order of first use."""

from __future__ import annotations

from itertools import count

from ce_fx.algebra.expression import Expression, substitute
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
