"""Common sub-products: parts that several products of a sum have in common, evaluated once.

Each product by itself may do better without its part: of `x.A.B + x.A.C`, where the windows of B and C do not align,
`x.(A.B)` costs less than `(x.A).B`, but both less than `x.A` once, times B and times C. So sets of leaves that stand in
several products are joined in all of them, one set after the other, as long as the sum of all costs less; what is
joined is a leaf from then on. When the plans are emitted equal calls become one (`ce_fx.lower.sums.candidate`).

That is the greedy elimination of common subexpressions of Hartono et al., "Performance optimization of tensor
contraction expressions for many-body methods in quantum chemistry" (J. Phys. Chem. A 113, 2009), with each product
planned anew around what is shared. Complexity: for C leaves in common at most C rounds of 2^C sets, with a search of
P products of n operands, O(3^n), for each; it looks at the clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from time import perf_counter

from ce_fx.plan.costs import Goal, Splits, flops_goal, time_goal
from ce_fx.plan.modes import Mode
from ce_fx.plan.network import Network
from ce_fx.plan.plan import Plan
from ce_fx.plan.planner import Objective, plan_of
from ce_fx.plan.search import exact, tree_of
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.ways import best_ways

_OPERANDS = 8  # of a product; longer ones share nothing here
_SECONDS = 0.5  # of the search


@dataclass(frozen=True)
class _Product:
    """A product while its parts are joined.

    Attributes:
        network: the product.
        goal: what is minimised.
        items: what is joined next, as bit sets of operands, each with the leaf or the shared part that it is.
        splits: the joins within shared parts.
    """

    network: Network
    goal: Goal
    items: dict[int, int]
    splits: Splits = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """Of the best order from here on; infinite where there is none."""
        return self.best(self.items)[0]

    def best(self, items: Collection[int]) -> tuple[float, Splits]:
        """The cost and the joins of the best order of some items."""
        found = exact(list(items), self.goal)
        return (inf, {}) if found is None else (self.goal.in_unit(found.cost), found.splits)

    def parts(self, common: Collection[int]) -> dict[object, tuple[int, ...]]:
        """Sets of items that other products hold, too, by what they are."""
        mine = [item for item, leaf in self.items.items() if leaf in common]
        found: dict[object, tuple[int, ...]] = {}
        for length in range(2, len(mine) + 1):
            for part in combinations(mine, length):
                leaves = tuple(sorted(self.items[item] for item in part))
                found.setdefault((leaves, self.network.size(sum(part))), part)
        return found

    def joined(self, part: Collection[int], name: int) -> _Product:
        """The product with some items as one."""
        rest = {item: leaf for item, leaf in self.items.items() if item not in part}
        return _Product(self.network, self.goal, {**rest, sum(part): name}, {**self.splits, **self.best(part)[1]})


def shared_plans(
    networks: Sequence[Network],
    *,
    objective: Objective,
    mode: Mode = "forward",
    time_model: TimeModel | None = None,
    memory_limit: int | None = None,
) -> tuple[list[Plan], float] | None:
    """Plans of the products of a sum that have parts in common, and what they cost with these parts counted once.

    Args:
        networks: the products.
        objective: "flops" or "time"; for "memory" nothing is shared, for what is shared is kept longer.
        mode: as in `make_plan`.
        time_model: as in `make_plan`.
        memory_limit: elements that no intermediate may exceed.

    Returns:
        None where nothing that several products have in common makes the sum cheaper than its products alone.
    """
    if objective == "memory" or len(networks) < 2 or any(not 1 < network.n <= _OPERANDS for network in networks):
        return None
    model = time_model or TimeModel.default("cpu")
    deadline = perf_counter() + _SECONDS
    products = [_product(network, objective, mode, model, memory_limit) for network in networks]
    if not _common(products):
        return None
    costs = [product.cost for product in products]
    before = total = sum(costs)
    shared, name = 0.0, 0
    improved = True
    while improved:
        improved, name = False, name - 1  # leaves have other numbers
        for parts in _common(products):
            if perf_counter() > deadline:
                break
            tried = [one.joined(parts[n], name) if n in parts else one for n, one in enumerate(products)]
            new = [one.cost if n in parts else costs[n] for n, one in enumerate(tried)]
            n, part = next(iter(parts.items()))
            once = shared + products[n].best(part)[0]
            if sum(new) + once < (1 - 1e-9) * total:
                total, best, improved = sum(new) + once, (tried, new, once), True
        if improved:
            products, costs, shared = best
    if total >= before:
        return None
    return [_plan(product, objective, mode, model, memory_limit) for product in products], total


def _product(network: Network, objective: Objective, mode: Mode, model: TimeModel, limit: int | None) -> _Product:
    goal = time_goal(network, mode, model, limit) if objective == "time" else flops_goal(network, mode, limit)
    return _Product(network, goal, {1 << n: factor.leaf for n, factor in enumerate(network.term.factors)})


def _common(products: Sequence[_Product]) -> list[dict[int, tuple[int, ...]]]:
    """What several products have in common: by the number of each product, which of its items they are."""
    times = Counter(leaf for product in products for leaf in set(product.items.values()))
    common = {leaf for leaf, held in times.items() if held > 1}
    found: dict[object, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for n, product in enumerate(products):
        for key, part in product.parts(common).items():
            found[key][n] = part
    return [parts for parts in found.values() if len(parts) > 1]


def _plan(product: _Product, objective: Objective, mode: Mode, model: TimeModel, limit: int | None) -> Plan:
    _, splits = product.best(product.items)
    tree = tree_of({**product.splits, **splits}, product.network.everything)
    ways = best_ways(product.network, tree, mode, model) if objective == "time" and limit is None else None
    return plan_of(product.network, tree, "shared", objective, mode, model, ways)
