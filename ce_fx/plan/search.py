"""Exact searches for the best evaluation tree, by dynamic programming over operand subsets.

The recurrence is that of netcon (Pfeifer, Haegeman, Verstraete, arXiv 1304.6112): the best tree of a subset is the
best split into two subsets with best trees. It is exact because sizes and costs of a step are functions of its two
subsets alone (see `ce_fx.plan.grid`), convolution axes included. Both searches start from a known tree's cost and
drop what cannot beat it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from ce_fx.plan.costs import Cost, Goal, Splits
from ce_fx.plan.network import Network
from ce_fx.plan.tree import Tree, splits_of


@dataclass(frozen=True)
class Found:
    """A tree better than the one that the search began with, and its cost."""

    cost: Cost
    splits: Splits


def exact(leaves: Sequence[int], goal: Goal, cap: Cost = inf, adjacent: Sequence[int] | None = None) -> Found | None:
    """The best of all trees over disjoint operand subsets, outer products included.

    Visits (3^m - 2^(m+1) + 1)/2 splits for m leaves, and prices only those whose two sides leave room for a gain.

    Args:
        leaves: what is joined: single operands, or subsets that are evaluated already.
        goal: what is minimised.
        cap: the cost of a known tree.
        adjacent: where given, for each leaf the local bit set of its neighbours, and only connected subsets are
            intermediates.

    Returns:
        The best tree, or None where no tree is cheaper than the cap.
    """
    full = (1 << len(leaves)) - 1
    best: list[Cost] = [inf] * (full + 1)
    split = [0] * (full + 1)
    real = [0] * (full + 1)
    for n, leaf in enumerate(leaves):
        real[1 << n], best[1 << n] = leaf, 0
    choose = _smallest_peak if goal.peak else _smallest_sum
    for subset in range(3, full + 1):
        rest = subset & (subset - 1)
        if not rest:
            continue
        real[subset] = real[rest] | real[subset ^ rest]
        if goal.fits(real[subset]) and (adjacent is None or is_connected(adjacent, subset)):
            best[subset], split[subset] = choose(subset, best, real, goal, cap)
    if best[full] >= cap:
        return None
    return Found(best[full], _table(full, {s: left for s, left in enumerate(split) if left}, dict(enumerate(real))))


def _smallest_sum(subset: int, best: list[Cost], real: list[int], goal: Goal, cap: Cost) -> tuple[Cost, int]:
    """The cheapest split of a subset where steps add up; infinite where none is below the cap."""
    rest = subset & (subset - 1)
    low = subset ^ rest
    step = goal.step
    lowest, split, sub = cap, 0, rest
    while sub:
        sub = (sub - 1) & rest
        left = low | sub
        parts = best[left] + best[subset ^ left]
        if parts < lowest:
            cost = parts + step(real[left], real[subset ^ left], lowest - parts)
            if cost < lowest:
                lowest, split = cost, left
    return (lowest, split) if split else (inf, 0)


def _smallest_peak(subset: int, best: list[Cost], real: list[int], goal: Goal, cap: Cost) -> tuple[Cost, int]:
    """The same where the largest step counts; a split is not looked at once it costs no more than its own step."""
    rest = subset & (subset - 1)
    low = subset ^ rest
    here = goal.step(real[rest], real[low], inf)
    lowest, split, sub = cap, 0, rest
    while sub and lowest > here:
        sub = (sub - 1) & rest
        left = low | sub
        cost = max(best[left], best[subset ^ left], here)
        if cost < lowest:
            lowest, split = cost, left
    return (lowest, split) if split else (inf, 0)


def _table(full: int, split: Mapping[int, int], real: Mapping[int, int]) -> Splits:
    """A tree as a table, children before parents, from the local split of every subset."""
    table: dict[int, tuple[int, int]] = {}
    stack = [full]
    while stack:
        subset = stack.pop()
        if subset in split:
            left, right = split[subset], subset ^ split[subset]
            table[real[subset]] = (real[left], real[right])
            stack += [left, right]
    return dict(reversed(table.items()))


def neighbours(network: Network, leaves: Sequence[int]) -> list[int]:
    """For each leaf the local bit set of the leaves that share an index or a convolution axis with it.

    An index of size 1 links nothing: what it joins is an outer product all the same.
    """
    wide = sum(bit for index, bit in network.bit.items() if index.size != 1)
    kept = [network.keep(leaf) & wide for leaf in leaves]
    axes = [sum(1 << a for a, axis in enumerate(network.axes) if axis.operands & leaf) for leaf in leaves]
    return [
        sum(1 << j for j in range(len(leaves)) if j != i and (kept[i] & kept[j] or axes[i] & axes[j]))
        for i in range(len(leaves))
    ]


def components(adjacent: Sequence[int]) -> list[int]:
    """The sets of leaves that hang together, as local bit sets."""
    rest = (1 << len(adjacent)) - 1
    found = []
    while rest:
        found.append(_reachable(adjacent, rest))
        rest &= ~found[-1]
    return found


def is_connected(adjacent: Sequence[int], subset: int) -> bool:
    """Whether a set of leaves hangs together."""
    return _reachable(adjacent, subset) == subset


def _reachable(adjacent: Sequence[int], subset: int) -> int:
    """The leaves of a set that its first one reaches within it."""
    reached = fresh = subset & -subset
    while fresh:
        around = 0
        for bit in _bits(fresh):
            around |= adjacent[bit.bit_length() - 1]
        fresh = around & subset & ~reached
        reached |= fresh
    return reached


def connected_sets(adjacent: Sequence[int], most: int) -> list[int] | None:
    """All connected sets of two or more leaves, as local bit sets; None where there are more than `most`."""
    seen: set[int] = set()
    layer = {1 << n for n in range(len(adjacent))}
    while layer:
        grown = {s | bit for s in layer for bit in _bits(_around(s, adjacent))}
        seen |= grown
        if len(seen) > most:
            return None
        layer = grown
    return sorted(seen)


def _around(subset: int, adjacent: Sequence[int]) -> int:
    around = 0
    for bit in _bits(subset):
        around |= adjacent[bit.bit_length() - 1]
    return around & ~subset


def _bits(mask: int) -> list[int]:
    bits = []
    while mask:
        bits.append(mask & -mask)
        mask &= mask - 1
    return bits


def connected(
    leaves: Sequence[int], adjacent: Sequence[int], goal: Goal, cap: Cost = inf, prices: int = 300_000
) -> Found | None:
    """The best of the trees whose every intermediate is connected (no outer products), by growing subsets.

    It works where few subsets are connected, or few of the connected ones have trees cheaper than the cap: chains,
    rings, trains. In general an outer product can be cheaper. On chains and rings of up to 10 operands none ever was:
    tests/plan compares the two searches.

    Args:
        leaves: what is joined.
        adjacent: for each leaf the local bit set of its neighbours; the whole must be connected.
        goal: what is minimised.
        cap: the cost of a known tree.
        prices: how many steps may be priced; twenty times as many pairs of subsets may be looked at.

    Returns:
        The best tree, or None where no connected tree is cheaper than the cap.

    Raises:
        SearchLimit: it would take more than that.
    """
    pairs = 20 * prices
    real = {1 << n: leaf for n, leaf in enumerate(leaves)}
    around = {1 << n: mask for n, mask in enumerate(adjacent)}
    best: dict[int, Cost] = dict.fromkeys(real, 0)
    split: dict[int, int] = {}
    layers: list[list[int]] = [[], list(real)]
    refused: set[int] = set()
    for size in range(2, len(leaves) + 1):
        fresh: dict[int, None] = {}
        for small in range(1, size // 2 + 1):
            pairs -= len(layers[small]) * len(layers[size - small])
            if pairs < 0:
                raise SearchLimit
            for a in layers[small]:
                if prices < 0:
                    raise SearchLimit
                beside = around[a]
                for b in [b for b in layers[size - small] if b & beside and not a & b]:
                    both = a | b
                    if both not in real:
                        real[both] = real[a] | real[b]
                        around[both] = (around[a] | around[b]) & ~both
                        if not goal.fits(real[both]):
                            refused.add(both)
                    lowest = best.get(both, cap)
                    parts: Cost = max(best[a], best[b]) if goal.peak else best[a] + best[b]
                    if parts >= lowest or both in refused:
                        continue
                    prices -= 1
                    step = goal.step(real[a], real[b], inf if goal.peak else lowest - parts)
                    cost = max(parts, step) if goal.peak else parts + step
                    if cost < lowest:
                        best[both], split[both] = cost, a if a & (both & -both) else b
                        fresh[both] = None
        layers.append(list(fresh))
    full = (1 << len(leaves)) - 1
    return Found(best[full], _table(full, split, real)) if full in split else None


class SearchLimit(Exception):
    """A search was given up because it would have taken too long."""


def splits_table(tree: Tree) -> Splits:
    """A tree as a table, in the order of evaluation."""
    return {left | right: (left, right) for left, right in splits_of(tree)}


def tree_of(splits: Splits, subset: int) -> Tree:
    """The tree of a table from a subset down to single operands; the side with the lower operand is on the left."""
    if subset not in splits:
        return subset.bit_length() - 1
    left, right = sorted(splits[subset], key=lambda side: side & -side)
    return tree_of(splits, left), tree_of(splits, right)
