"""The plans that a decision by the clock chooses from: few, good, and different where it counts.

    where it is from   tree
    time               the best by the time model
    flops              the fewest multiply-adds
    written            left to right, as the operands stand
    dense              everything that depends on weights only, then the rest: rebuild and convolve
    near               the next best by the time model, each with another heavy step than those before

A prediction is off by a factor of 1.5 or so, so the best of a handful beats the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from ce_fx.plan.costs import Goal, Splits, time_goal
from ce_fx.plan.modes import Mode
from ce_fx.plan.network import Network
from ce_fx.plan.plan import Plan
from ce_fx.plan.planner import make_plan, plan_of, written_tree
from ce_fx.plan.ranked import several
from ce_fx.plan.search import splits_table, tree_of
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import Tree, splits_of
from ce_fx.plan.ways import best_ways

_RANKED = 10  # operands up to which the next best trees are searched
_NEAR = 3.0  # of which none may take longer than this many times the best
_HEAVY = 0.1  # share of a tree's time from which a step counts as heavy


def make_plans(
    network: Network,
    *,
    count: int = 8,
    mode: Mode = "forward",
    time_model: TimeModel | None = None,
    memory_limit: int | None = None,
) -> list[Plan]:
    """Different plans that could be the fastest, the best by the time model first.

    Args:
        network: what to evaluate.
        count: how many at most.
        mode: as in `make_plan`.
        time_model: as in `make_plan`.
        memory_limit: elements that no intermediate may exceed.

    Raises:
        PlanError: no order keeps to the memory limit.
    """
    model = time_model or TimeModel.default("cpu")
    goal = time_goal(network, mode, model, memory_limit)
    best = make_plan(network, objective="time", mode=mode, memory_limit=memory_limit, time_model=model)
    if network.n <= 2 or count == 1:
        return [best]
    plans = {_key(best.tree): replace(best, method="time")}
    for method, tree in _named(network, mode, memory_limit):
        if goal.total(splits_table(tree)) < inf:
            plans.setdefault(_key(tree), _plan(network, tree, method, mode, model, memory_limit))
    for splits in _near(network, goal, 4 * count, goal.total(splits_table(best.tree))):
        if len(plans) >= count:
            break
        tree = tree_of(splits, network.everything)
        plans.setdefault(_key(tree), _plan(network, tree, "near", mode, model, memory_limit))
    return sorted(plans.values(), key=lambda plan: plan.cost)[:count]


def _named(network: Network, mode: Mode, limit: int | None) -> Iterator[tuple[str, Tree]]:
    yield "flops", make_plan(network, objective="flops", mode=mode, memory_limit=limit).tree
    yield "written", written_tree(network.n)
    dense = _dense(network)
    if dense is not None:
        yield "dense", dense


def _dense(network: Network) -> Tree | None:
    """A tree that finishes what depends on weights only first; None where there is nothing to finish."""
    inside = [n for n in range(network.n) if network.constant >> n & 1]
    if len(inside) < 2 or len(inside) == network.n:
        return None
    tree = _joined(network, inside)
    for n in range(network.n):
        if n not in inside:
            tree = (n, tree)
    return tree


def _joined(network: Network, operands: list[int]) -> Tree:
    """Some operands joined greedily by the fewest multiply-adds of the next step."""
    trees: dict[int, Tree] = {1 << n: n for n in operands}
    while len(trees) > 1:
        left, right = min(
            ((a, b) for a in trees for b in trees if a < b), key=lambda pair: (network.flops(*pair), pair)
        )
        trees[left | right] = (trees.pop(left), trees.pop(right))
    return next(iter(trees.values()))


def _near(network: Network, goal: Goal, count: int, best: float) -> list[Splits]:
    """The next best trees, those first that have other heavy steps than the ones before.

    Steps are told apart by what they cost: trees that differ in the roles of height and width only are alike.
    """
    if network.n > _RANKED:
        return []
    found = several([1 << n for n in range(network.n)], goal, count, _NEAR * best)
    seen: set[tuple[float, ...]] = set()
    different: list[Splits] = []
    alike: list[Splits] = []
    for tree in found:
        costs = [goal.step(*pair, inf) for pair in tree.splits.values()]
        heavy = tuple(sorted(float(f"{cost:.3g}") for cost in costs if cost > _HEAVY * tree.cost))
        (alike if heavy in seen else different).append(tree.splits)
        seen.add(heavy)
    return [*different, *alike]


def _plan(network: Network, tree: Tree, method: str, mode: Mode, model: TimeModel, limit: int | None) -> Plan:
    ways = best_ways(network, tree, mode, model) if limit is None else None
    return plan_of(network, tree, method, "time", mode, model, ways)


def _key(tree: Tree) -> frozenset[int]:
    """A tree up to the order of its sides."""
    return frozenset(left | right for left, right in splits_of(tree))
