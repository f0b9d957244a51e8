"""Values that hold on a part of an axis only: a constant with zeros around, what is written over a slice.

Such a value is a product with a piecewise constant vector, a leaf that follows from numbers alone. Two products that
differ in one such vector only are one product with their sum; a vector of ones is none. So a border that is written
around an image, of the same constant as what the image was shifted by, leaves nothing but that shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from typing import TypeAlias

from ce_fx.algebra import Expression, Factor, Index, Term, flat
from ce_fx.algebra.canonical import term_key
from ce_fx.algebra.derived import Derived
from ce_fx.lift.products import Refused
from ce_fx.lift.registry import Operands

Values: TypeAlias = "tuple[float | complex, ...]"

KIND = "steps"


def box(size: int, start: int, stop: int) -> Values:
    """Ones at positions `start` to `stop - 1`, zeros elsewhere."""
    return tuple(float(start <= n < stop) for n in range(size))


def times(term: Term, index: Index, values: Values, operands: Operands) -> Term | None:
    """A term times a vector along one of its axes, None where nothing is left.

    Raises:
        Refused: the term holds the axis in something else than such a vector. To multiply that by zero is no way to
            write over it: it may be infinite.
    """
    if any(w.out == index or w.features == index for w in term.windows):
        raise Refused("a part of what a convolution or a concatenation gives is written over")
    holding = [n for n, factor in enumerate(term.factors) if index in flat(factor.axes)]
    if any(_values(term.factors[n], operands) is None for n in holding):
        raise Refused("a part of what is computed is written over")
    for n in holding:
        values = tuple(a * b for a, b in zip(values, _values(term.factors[n], operands) or (), strict=True))
    rest = tuple(factor for n, factor in enumerate(term.factors) if n not in holding)
    return _with_steps(replace(term, factors=rest), index, values, operands)


def merged(expression: Expression, operands: Operands) -> Expression:
    """The same sum, products that differ in one vector of steps added up.

    Raises:
        Refused: nothing is left.
    """
    kept = frozenset(flat(expression.axes))
    terms = list(expression.terms)
    while True:
        pairs = ((a, b, _sum(a, b, kept, operands)) for a, b in combinations(terms, 2))
        found = next(((a, b, both) for a, b, both in pairs if both is not None), None)
        if found is None:
            break
        first, second, both = found
        terms = [*(term for term in terms if term is not first and term is not second), *both]
    if not terms:
        raise Refused("a sum that is zero")
    return replace(expression, terms=tuple(terms))


def _sum(first: Term, second: Term, kept: frozenset[Index], operands: Operands) -> list[Term] | None:
    """The sum of two terms that are equal but for one vector: a term, or none if it is zero. Else None."""
    for n, index, values in _steps(first, operands):
        rest = _without(first, n)
        for m, other, more in _steps(second, operands):
            if other == index and term_key(_without(second, m), kept) == term_key(rest, kept):
                ratio = second.coefficient / first.coefficient
                added = tuple(a + ratio * b for a, b in zip(values, more, strict=True))
                both = _with_steps(rest, index, added, operands)
                return [] if both is None else [both]
    return None


def _steps(term: Term, operands: Operands) -> Iterable[tuple[int, Index, Values]]:
    for n, factor in enumerate(term.factors):
        values = _values(factor, operands)
        if values is not None:
            yield n, factor.axes[0][0], values


def _values(factor: Factor, operands: Operands) -> Values | None:
    """The entries of a vector of steps, None for any other factor."""
    key = operands.key(factor.leaf)
    if not isinstance(key, Derived) or key.kind != KIND or len(factor.axes[0]) != 1:
        return None
    return tuple(value for value, length in key.params for _ in range(length))


def _with_steps(term: Term, index: Index, values: Values, operands: Operands) -> Term | None:
    """A term that does not hold an axis, times a vector along it."""
    if not any(values):
        return None
    if len(set(values)) == 1:
        return replace(term, coefficient=term.coefficient * values[0])
    leaf = operands.derived(Derived(KIND, (), _runs(values)), (len(values),)).terms[0].factors[0].leaf
    return replace(term, factors=(*term.factors, Factor(leaf, ((index,),))))


def _runs(values: Sequence[float | complex]) -> tuple[tuple[float | complex, int], ...]:
    return tuple((value, len(list(run))) for value, run in groupby(values))


def _without(term: Term, n: int) -> Term:
    return replace(term, factors=(*term.factors[:n], *term.factors[n + 1 :]))
