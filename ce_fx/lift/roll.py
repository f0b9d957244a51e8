"""Loops that were unrolled: products that differ only in which position of some axes they take become one product.

`sum_r x . A[r] . B[:, r]`, written as R products of slices, is `x . A . B` with an index r in both. It shows in the
relations that the slices left (see `ce_fx.lift.blocks`): equal products but for the positions that they pick, which
count up together from one product to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ce_fx.algebra import Expression, Index, Term, Window, flat
from ce_fx.algebra.canonical import term_key


def rolled(expression: Expression, fresh: Callable[[str, int], Index]) -> Expression:
    """The same function, with what was a loop over positions as one product that sums over an index.

    Args:
        expression: a sum, its slices not resolved yet.
        fresh: makes an index.
    """
    kept = frozenset(flat(expression.axes))
    terms = [new for group in rounds(expression.terms, kept) for new in _runs(group, kept, fresh)]
    return replace(expression, terms=tuple(terms)) if len(terms) < len(expression.terms) else expression


def rounds(terms: Iterable[Term], kept: Iterable[Index]) -> list[list[Term]]:
    """Products in groups that differ in picked positions only: each may be one loop.

    Args:
        terms: the products of a sum.
        kept: the indices of its result.
    """
    held = frozenset(kept)
    groups: dict[object, list[Term]] = {}
    for term in terms:
        groups.setdefault(_alike(term, held), []).append(term)
    return list(groups.values())


def _picks(term: Term, kept: frozenset[Index]) -> list[Window]:
    """The relations that pick one position of an axis, in the order of the factors that have the axis."""
    order = [i for factor in sorted(term.factors, key=lambda f: f.leaf) for i in flat(factor.axes)]
    picks = [
        w
        for w in term.windows
        if not w.taps and w.out.size == 1 and w.stride == 1 and w.out not in kept and order.count(w.features) == 1
    ]
    return sorted(picks, key=lambda w: order.index(w.features))


def _alike(term: Term, kept: frozenset[Index]) -> object:
    """Equal for products that differ in picked positions only."""
    picks = _picks(term, kept)
    rest = tuple(w for w in term.windows if w not in picks)
    return term_key(replace(term, windows=rest), kept), term.coefficient, len(picks)


def _runs(group: Sequence[Term], kept: frozenset[Index], fresh: Callable[[str, int], Index]) -> list[Term]:
    """Alike products as one, where their positions count up; else as they are."""
    ordered = sorted(group, key=lambda term: [-w.pad for w in _picks(term, kept)])
    places = [[-w.pad for w in _picks(term, kept)] for term in ordered]
    first = places[0]
    moving = [n for n in range(len(first)) if places[-1][n] != first[n]]
    counted = [[p + (r if n in moving else 0) for n, p in enumerate(first)] for r in range(len(places))]
    if len(group) < 2 or not moving or places != counted:
        return list(group)
    picks = _picks(ordered[0], kept)
    index = fresh("r", len(group))
    runs = tuple(Window(picks[n].features, index, (), 1, picks[n].pad) for n in moving)
    rest = tuple(w for w in ordered[0].windows if w not in [picks[n] for n in moving])
    return [replace(ordered[0], windows=(*rest, *runs))]
