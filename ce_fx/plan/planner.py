"""The planner's front: from a network and an objective to a plan.

    operands   search                                                               the result
    1, 2       none
    3..12      exact over all trees, outer products included                        optimal
    13..       exact over all trees without outer products, where the connected     optimal among those
               subsets (or those cheaper than a known tree) are few: chains, rings,
               trains; up to 14 operands always
    13..       otherwise 64 greedy trees, the best of them improved by exact        good
               searches of their subtrees

The order as written is a candidate of every search, and is kept where nothing is cheaper.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal, NoReturn, TypeAlias

from ce_fx.plan.costs import Cost, Goal, Splits, flops_goal, peak_goal, saved_goal, time_goal
from ce_fx.plan.greedy import greedy, reconfigure, starts
from ce_fx.plan.modes import MODES, Mode
from ce_fx.plan.network import Network
from ce_fx.plan.plan import Plan, PlanError
from ce_fx.plan.search import (
    Found,
    SearchLimit,
    components,
    connected,
    connected_sets,
    exact,
    neighbours,
    splits_table,
    tree_of,
)
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import Tree
from ce_fx.plan.ways import Way, best_ways

log = logging.getLogger(__name__)

Objective: TypeAlias = Literal["flops", "time", "memory"]
Path: TypeAlias = Sequence[Sequence[int]]

OBJECTIVES: tuple[Objective, ...] = ("flops", "time", "memory")
OPTIMIZE = ("auto", "optimal", "greedy", "written")

_EXACT = 12  # operands up to which every tree is searched
_OPTIMAL = 16  # the same where the user insists: about 20 s
_CONNECTED = 14  # operands up to which every connected subset is searched
_FEW = 1500  # connected subsets that are searched whatever they cost
_STARTS = 64
_IMPROVED = {"flops": 6, "memory": 6, "time": 2}  # greedy trees that are improved
_PRICES = {"flops": 300_000, "memory": 300_000, "time": 60_000}  # steps that a search of connected subsets prices
_SUBTREE = {"flops": 8, "memory": 8, "time": 6}  # leaves of a subtree that is searched exactly


def make_plan(
    network: Network,
    *,
    objective: Objective = "flops",
    mode: Mode = "forward",
    optimize: str | Path = "auto",
    memory_limit: int | None = None,
    time_model: TimeModel | None = None,
    written: Tree | None = None,
) -> Plan:
    """Choose an evaluation order.

    Args:
        network: what to evaluate.
        objective: "flops": multiply-adds. "memory": the largest intermediate, in mode "train" the intermediates that
            autograd saves; then multiply-adds. "time": seconds by the time model.
        mode: "forward"; "train": forward and backward; "checkpoint": the same, and all but the last step once more
            in the backward; "fold": what depends on constants only is computed once.
        optimize: "auto"; "optimal": exact over all trees, up to 16 operands; "greedy"; "written"; or a path in
            opt_einsum's linear convention: pairs of positions in a list of operands from which the two are taken and
            to whose end the result is put.
        memory_limit: elements that no intermediate, the output included, may exceed.
        time_model: for the objective "time"; None for the CPU defaults.
        written: the order as written, where that is not left to right.

    Returns:
        The plan. Unless a path is given its cost is at most that of the order as written, if that is within the limit.

    Raises:
        PlanError: an option is unknown, a path does not fit, or the memory limit cannot be met.
    """
    _check(network, objective, mode, optimize)
    first = written if written is not None else written_tree(network.n)
    if network.n <= 2 or optimize == "written":
        return _fixed(network, first, "written", objective, mode, memory_limit, time_model)
    if not isinstance(optimize, str):
        tree = tree_of_path(optimize, network.n)
        return _fixed(network, tree, "path", objective, mode, memory_limit, time_model)
    known = [splits_table(first), greedy(network)]
    if objective == "memory" and mode != "train":
        # Exact in two searches: the least largest intermediate, then the fewest multiply-adds that keep to it.
        peak, certainty = _solve(network, peak_goal(network, memory_limit), known, optimize, "memory")
        known.append(peak)
        goal = flops_goal(network, mode, max(map(network.size, peak)))
    else:
        goal = _goal(network, objective, mode, memory_limit, time_model)
        if objective == "time" and optimize != "greedy":
            cheap, _ = _solve(network, flops_goal(network, mode, memory_limit), known, optimize, "flops")
            known.append(cheap)
        certainty = "optimal"
    best, method = _solve(network, goal, known, optimize, objective)
    if certainty not in ("optimal", "connected") and method != "written":
        method = "greedy"
    log.debug("%d operands, %s for %s: %s", network.n, objective, mode, method)
    tree = tree_of(best, network.everything)
    fast = objective == "time" and memory_limit is None
    ways = best_ways(network, tree, mode, time_model or TimeModel.default("cpu")) if fast else None
    return plan_of(network, tree, method, objective, mode, time_model, ways)


def written_tree(n: int) -> Tree:
    """Left to right: `(((0, 1), 2), 3)`."""
    tree: Tree = 0
    for operand in range(1, n):
        tree = (tree, operand)
    return tree


def tree_of_path(path: Path, n: int) -> Tree:
    """The tree of an opt_einsum path: `[(0, 1), (0, 1)]` on three operands is `(2, (0, 1))`.

    Raises:
        PlanError: an entry is no pair of different positions, or the path leaves more than one result.
    """
    trees: list[Tree] = list(range(n))
    for number, entry in enumerate(path):
        pair = tuple(entry)
        if n == 1 and pair == (0,):
            continue
        if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= p < len(trees) for p in pair):
            raise PlanError(
                f"path entry {number} is {pair}, but there are {len(trees)} operands then: "
                f"give two different positions from 0 to {len(trees) - 1}"
            )
        left, right = trees[pair[0]], trees[pair[1]]
        trees = [tree for p, tree in enumerate(trees) if p not in pair] + [(left, right)]
    if len(trees) != 1:
        raise PlanError(f"the path joins {n} operands into {len(trees)} results; it needs {n - 1} pairs")
    return trees[0]


def path_of_tree(tree: Tree, n: int) -> list[tuple[int, ...]]:
    """A tree as an opt_einsum path (see `make_plan`)."""
    if n == 1:
        return [(0,)]
    waiting = [1 << operand for operand in range(n)]
    path: list[tuple[int, ...]] = []
    for left, right in splits_table(tree).values():
        pair = sorted((waiting.index(left), waiting.index(right)))
        path.append(tuple(pair))
        waiting = [subset for p, subset in enumerate(waiting) if p not in pair] + [left | right]
    return path


def _check(network: Network, objective: str, mode: str, optimize: object) -> None:
    if not network.n:
        raise PlanError("a product of no operands needs no plan")
    choices: list[tuple[str, str, tuple[str, ...]]] = [("objective", objective, OBJECTIVES), ("mode", mode, MODES)]
    if isinstance(optimize, str):
        choices.append(("optimize", optimize, OPTIMIZE))
    for name, value, allowed in choices:
        if value not in allowed:
            raise PlanError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    if optimize == "optimal" and network.n > _OPTIMAL:
        raise PlanError(
            f"optimize='optimal' searches all trees, which takes too long for {network.n} operands; "
            f"it goes up to {_OPTIMAL}. Use 'auto'"
        )


def _goal(network: Network, objective: str, mode: Mode, limit: int | None, model: TimeModel | None) -> Goal:
    if objective == "time":
        return time_goal(network, mode, model or TimeModel.default("cpu"), limit)
    if objective == "memory":
        return saved_goal(network, limit) if mode == "train" else peak_goal(network, limit)
    return flops_goal(network, mode, limit)


def _solve(network: Network, goal: Goal, known: Sequence[Splits], optimize: str, objective: str) -> tuple[Splits, str]:
    """The best tree that can be found, and the name of the method that vouches for it.

    Raises:
        PlanError: no tree keeps to the goal's limit.
    """
    costs = [goal.total(splits) for splits in known]
    cap = min(costs)
    best, method = known[costs.index(cap)], "written" if cap == costs[0] < inf else "greedy"
    if optimize == "greedy" and cap < inf:
        return best, method
    leaves = [1 << n for n in range(network.n)]
    if network.n <= _EXACT or optimize == "optimal":
        found = exact(leaves, goal, cap)
        if found is None and cap == inf:
            _hopeless(network, goal)
        return (best if found is None else found.splits), "optimal"
    best = _improved(network, goal, known, objective)
    better, proven = _without_outer_products(network, goal, leaves, goal.total(best), objective)
    best = best if better is None else better
    cap = goal.total(best)
    if cap == inf:
        _hopeless(network, goal)
    return best, "connected" if proven else "written" if cap == costs[0] else "greedy"


def _improved(network: Network, goal: Goal, known: Sequence[Splits], objective: str) -> Splits:
    """The best of many greedy trees, each of the better ones improved by exact searches of its subtrees."""
    count = max(4, min(_STARTS, 60_000 // network.n**2))
    trees = [*known, *starts(network, goal, count)[: _IMPROVED[objective]]]
    if goal.limit is not None and not any(goal.total(tree) < inf for tree in trees):
        trees.append(_improved(network, peak_goal(network), known, "memory"))
    fitting = [tree for tree in trees if goal.total(tree) < inf]
    improved = [reconfigure(tree, network.everything, goal, _SUBTREE[objective]) for tree in fitting]
    return min(improved, key=goal.total, default=trees[0])


def _without_outer_products(
    network: Network, goal: Goal, leaves: Sequence[int], cap: Cost, objective: str
) -> tuple[Splits | None, bool]:
    """A tree of connected intermediates that is cheaper than the cap, and whether the search went to its end.

    Parts that have nothing in common are finished first and joined then: an outer product before that multiplies the
    cost of every later step of the part.
    """
    parts = components(neighbours(network, leaves))  # the leaves are single operands: local sets are operand sets
    if len(parts) > _EXACT:
        return None, False
    splits: dict[int, tuple[int, int]] = {}
    for part in parts:
        inside = [leaf for leaf in leaves if leaf & part]
        try:
            found = _connected(network, goal, inside, cap, objective) if len(inside) > 1 else Found(0, {})
        except SearchLimit:
            return None, False
        if found is None:
            return None, True
        splits.update(found.splits)
    if len(parts) > 1:
        found = exact(parts, goal, cap)
        if found is None:
            return None, True
        splits.update(found.splits)
    return (splits if goal.total(splits) < cap else None), True


def _connected(network: Network, goal: Goal, leaves: Sequence[int], cap: Cost, objective: str) -> Found | None:
    """The search that suits the number of connected subsets."""
    linked = neighbours(network, leaves)
    if len(leaves) > _CONNECTED or connected_sets(linked, _FEW) is not None:
        return connected(leaves, linked, goal, cap, _PRICES[objective])
    return exact(leaves, goal, cap, linked)


def _hopeless(network: Network, goal: Goal) -> NoReturn:
    splits, method = _solve(network, peak_goal(network), [splits_table(written_tree(network.n))], "auto", "memory")
    least = max(map(network.size, splits))
    bound = "the smallest possible" if method == "optimal" else "the smallest found"
    raise PlanError(
        f"no order of these {network.n} operands keeps every intermediate within {goal.limit} elements: {bound} "
        f"largest intermediate has {least} (the output has {network.size(network.everything)}). "
        f"Raise the memory limit to {least}, or lift it"
    )


def _fixed(
    network: Network,
    tree: Tree,
    method: str,
    objective: Objective,
    mode: Mode,
    limit: int | None,
    model: TimeModel | None,
) -> Plan:
    """The plan of a given tree.

    Raises:
        PlanError: it is over the limit.
    """
    fast = objective == "time" and limit is None
    ways = best_ways(network, tree, mode, model or TimeModel.default("cpu")) if fast else None
    plan = plan_of(network, tree, method, objective, mode, model, ways)
    if limit is not None and plan.largest > limit:
        if network.n <= 2:
            cure = f"that is the result itself, so the limit must be at least {plan.largest}"
        else:
            cure = "raise the limit, or let optimize='auto' look for another order"
        raise PlanError(
            f"the {method} order {tree} has an intermediate of {plan.largest} elements, "
            f"more than the memory limit of {limit}: {cure}"
        )
    return plan


def plan_of(
    network: Network,
    tree: Tree,
    method: str,
    objective: Objective,
    mode: Mode,
    model: TimeModel | None,
    ways: Mapping[int, Way] | None = None,
) -> Plan:
    """The plan of a tree that is known already, with its costs.

    Args:
        network: what to evaluate.
        tree: the order.
        method: where it is from.
        objective: as in `make_plan`.
        mode: as in `make_plan`.
        model: as in `make_plan`, its `time_model`.
        ways: as in `Plan`.
    """
    splits = splits_table(tree)
    goal = _goal(network, objective, mode, None, model)
    return Plan(
        network=network,
        tree=tree,
        method=method,
        flops=sum(network.flops(left, right) for left, right in splits.values()),
        largest=max(map(network.size, splits), default=network.size(network.everything)),
        cost=goal.in_unit(goal.total(splits)),
        ways=ways or {},
    )
