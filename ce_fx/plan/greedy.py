"""Good trees for many operands: greedy ones with noise, improved by exact searches of their subtrees.

Subtree reconfiguration is the idea of Gray and Kourtis, "Hyper-optimized tensor network contraction"
(arXiv 2002.01935): cut a small subtree out of a tree, and put the optimum over its leaves in its place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import log

from ce_fx.plan.costs import Cost, Goal, Splits
from ce_fx.plan.network import Network
from ce_fx.plan.search import exact, neighbours

Scores = dict[tuple[int, int], tuple[float, float]]


@dataclass(frozen=True)
class Noise:
    """How one greedy run chooses: the pair with the least `log(out) - weight*log(left + right) + temperature*noise`.

    Attributes:
        weight: how much it counts that the two sides disappear.
        temperature: scale of the Gumbel noise; 0 for none.
        seed: of the noise.
    """

    weight: float = 1.0
    temperature: float = 0.0
    seed: int = 0


def greedy(network: Network, noise: Noise = Noise(), scores: Scores | None = None) -> Splits:
    """One greedy tree: always join the neighbours whose result is smallest, compared with what it replaces.

    Operands without a neighbour are joined last, the smallest first.

    Args:
        network: what to evaluate.
        noise: how to choose.
        scores: log sizes of pairs, shared between runs.

    Returns:
        The tree as a table, in the order of evaluation.
    """
    scores = {} if scores is None else scores
    chance = random.Random(noise.seed)
    leaves = [1 << n for n in range(network.n)]
    near = {leaf: set(_each(mask)) for leaf, mask in zip(leaves, neighbours(network, leaves), strict=True)}

    def entry(left: int, right: int) -> tuple[float, int, int]:
        key = (left, right) if left < right else (right, left)
        if key not in scores:
            sides = network.size(left) + network.size(right)
            scores[key] = (log(max(1, network.size(left | right))), log(max(1, sides)))
        out, sides_log = scores[key]
        jitter = -log(chance.expovariate(1.0) or 1e-300) if noise.temperature else 0.0
        return out - noise.weight * sides_log - noise.temperature * jitter, *key

    heap = [entry(a, b) for a, those in near.items() for b in sorted(those) if a < b]
    heapify(heap)
    splits: dict[int, tuple[int, int]] = {}
    while heap:
        _, a, b = heappop(heap)
        if a in near and b in near:
            both = _join(near, splits, a, b)
            for other in sorted(near[both]):
                heappush(heap, entry(both, other))
    while len(near) > 1:
        a, b = sorted(near, key=lambda subset: (network.size(subset), subset))[:2]
        _join(near, splits, a, b)
    return splits


def _join(near: dict[int, set[int]], splits: dict[int, tuple[int, int]], a: int, b: int) -> int:
    both = a | b
    splits[both] = (a, b)
    near[both] = (near.pop(a) | near.pop(b)) - {a, b}
    for other in near[both]:
        near[other] -= {a, b}
        near[other].add(both)
    return both


def _each(mask: int) -> list[int]:
    bits = []
    while mask:
        bits.append(mask & -mask)
        mask &= mask - 1
    return bits


def starts(network: Network, goal: Goal, count: int) -> list[Splits]:
    """Greedy trees of several tempers, the best by the goal first, each once."""
    scores: Scores = {}
    found: dict[tuple[int, ...], tuple[Cost, int, Splits]] = {}
    chance = random.Random(0)
    for number in range(count):
        noise = Noise(chance.choice((0.25, 0.5, 1.0, 1.0)), chance.choice((0.05, 0.2, 0.5, 1.0)), number)
        splits = greedy(network, noise if number else Noise(), scores)
        found.setdefault(tuple(sorted(splits)), (goal.total(splits), number, splits))
    return [splits for _, _, splits in sorted(found.values(), key=lambda entry: entry[:2])]


def reconfigure(splits: Splits, everything: int, goal: Goal, leaves: int = 8, searches: int = 400) -> Splits:
    """Replace subtrees by the optimum over their leaves, the heaviest first, until none gains or the budget is spent.

    Args:
        splits: the tree to improve.
        everything: the subset of all operands.
        goal: what is minimised.
        leaves: the largest number of leaves of a subtree.
        searches: how many subtrees may be searched.

    Returns:
        A tree that costs no more.
    """
    tree = dict(splits)
    settled: set[tuple[int, ...]] = set()
    gained = True
    while gained and searches > 0:
        gained = False
        cost = {subset: goal.sum([pair]) for subset, pair in tree.items()}
        for subset in sorted(tree, key=lambda subset: (-cost[subset], subset)):
            if subset not in tree or searches <= 0:
                continue
            inner, frontier = _subtree(tree, subset, leaves)
            key = tuple(sorted(frontier))
            if len(frontier) < 3 or key in settled:
                continue
            settled.add(key)
            searches -= 1
            found = exact(key, goal, goal.sum(tree[s] for s in inner))
            if found is not None:
                for old in inner:
                    del tree[old]
                tree.update(found.splits)
                gained = True
    return _ordered(tree, everything)


def _subtree(tree: Splits, root: int, most: int) -> tuple[list[int], list[int]]:
    """The inner nodes and the leaves of a subtree, grown by opening the leaf with the most operands."""
    inner, frontier = [root], list(tree[root])
    while len(frontier) < most:
        node = max((s for s in frontier if s in tree), key=lambda s: (s.bit_count(), s), default=0)
        if not node:
            break
        frontier.remove(node)
        inner.append(node)
        frontier += tree[node]
    return inner, frontier


def _ordered(tree: Splits, root: int) -> Splits:
    """The same table, children before parents."""
    order: list[int] = []
    stack: Sequence[int] = [root]
    stack = list(stack)
    while stack:
        subset = stack.pop()
        if subset in tree:
            order.append(subset)
            stack += tree[subset]
    return {subset: tree[subset] for subset in reversed(order)}
