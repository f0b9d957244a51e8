"""The best trees, not one: what a decision by the clock chooses from.

Every subset of operands keeps its cheapest trees, a tree being a split and one of the trees of either side: the k best
derivations of Huang and Chiang, "Better k-best parsing" (IWPT 2005), enumerated in full.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from ce_fx.plan.costs import Cost, Goal, Splits
from ce_fx.plan.search import Found


def several(leaves: Sequence[int], goal: Goal, count: int, cap: Cost) -> list[Found]:
    """The cheapest trees, at most `count`, the best first; for goals whose steps add up.

    Args:
        leaves: what is joined: single operands.
        goal: what is minimised.
        count: how many trees.
        cap: trees that cost this or more are left out.
    """
    full = (1 << len(leaves)) - 1
    real = [0] * (full + 1)
    ranked: list[list[tuple[Cost, int, int, int]]] = [[] for _ in range(full + 1)]
    for n, leaf in enumerate(leaves):
        real[1 << n] = leaf
        ranked[1 << n] = [(0, 0, 0, 0)]
    for subset in range(3, full + 1):
        rest = subset & (subset - 1)
        if not rest:
            continue
        real[subset] = real[rest] | real[subset ^ rest]
        if goal.fits(real[subset]):
            ranked[subset] = _ranked(subset, ranked, real, goal, count, cap)
    return [
        Found(entry[0], _ranked_table(full, place, ranked, real)) for place, entry in enumerate(ranked[full][:count])
    ]


def _ranked(
    subset: int, ranked: Sequence[list[tuple[Cost, int, int, int]]], real: list[int], goal: Goal, count: int, cap: Cost
) -> list[tuple[Cost, int, int, int]]:
    """The cheapest trees of a subset: (cost, left side, which of its trees, which of the other side's)."""
    rest = subset & (subset - 1)
    low = subset ^ rest
    found: list[tuple[Cost, int, int, int]] = []
    sub = rest
    while sub:
        sub = (sub - 1) & rest
        left = low | sub
        these, those = ranked[left], ranked[subset ^ left]
        if not these or not those:
            continue
        bound = found[-1][0] if len(found) == count else cap
        parts = these[0][0] + those[0][0]
        if parts >= bound:
            continue
        step = goal.step(real[left], real[subset ^ left], bound - parts)
        for i, (one, *_) in enumerate(these):
            if one + those[0][0] + step >= bound:
                break
            for j, (other, *_) in enumerate(those[: count // (i + 1)]):
                if one + other + step >= bound:
                    break
                insort(found, (one + other + step, left, i, j))
                del found[count:]
                bound = found[-1][0] if len(found) == count else cap
    return found


def _ranked_table(
    full: int, place: int, ranked: Sequence[list[tuple[Cost, int, int, int]]], real: Sequence[int]
) -> Splits:
    """One of the ranked trees as a table, children before parents."""
    table: dict[int, tuple[int, int]] = {}
    stack = [(full, place)]
    while stack:
        subset, place = stack.pop()
        _, left, i, j = ranked[subset][place]
        if left:
            table[real[subset]] = (real[left], real[subset ^ left])
            stack += [(left, i), (subset ^ left, j)]
    return dict(reversed(table.items()))
