"""Choose how a sum of products is factored: which products are evaluated together, around which core.

A part of a sum is a product that stands alone, or a group: products that share a *core* of leaves, evaluated as the
core times the sum of what is left of each, which is planned in the same way (`ce_fx.algebra.factor`). LoRA's
`x.W + x.A.B` is two alone (the bypass) or one group around x (the merged kernel); which is faster depends on sizes and
on which gradients are needed, so both are priced, each product by its own search.

Cores are leaves, and sets of leaves, that several products hold. An assignment of the products to cores is improved
one product at a time from a few starts: nothing grouped, and everything grouped around each core. That is the recipe
of the Tensor Contraction Engine (Hartono et al., 2009) and of gristmill, with two changes: a group is weighed by its
price and not by its size, and the sum that is left is planned again.

Complexity: O(starts x passes x T x C) groups for T products and C <= 16 cores, each of them one search of a product of
n operands, O(3^n); equal products are priced once, and so are equal sums that cores leave in one order or another.
Where an assignment has few choices all are tried. The search looks at the clock and gives what it has found after 1.5
seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, count, product
from math import inf, prod
from time import perf_counter
from typing import TypeAlias

from ce_fx.algebra import Axes, Expression, Factor, Index, Term, flat
from ce_fx.algebra.canonical import canonical
from ce_fx.algebra.factor import factor_out
from ce_fx.algebra.program import Eye, Group, Program, Recipe, Step, sources
from ce_fx.plan.network import Network, Operand

log = logging.getLogger(__name__)

_CORES = 16
_ALL = 100  # assignments that are all tried
_PASSES = 4
_SECONDS = 1.5  # of one search; what was found by then is what there is

ProductPrice: TypeAlias = Callable[[Network], float]
"""The cost of the best order of a product."""
SumPrice: TypeAlias = Callable[[int, int, Operand], float]
"""`price(parts, elements, result)`: of writing a result of `elements` as a sum of parts, or as a copy of one."""
_Choice: TypeAlias = "tuple[int | None, ...]"  # for each product the number of its core, or None


@dataclass(frozen=True)
class Prices:
    """What parts of a sum cost, in the unit of the objective.

    Attributes:
        product: of the best order of a product.
        total: of adding parts up.
        peak: the cost of several is the largest; otherwise their sum.
    """

    product: ProductPrice
    total: SumPrice
    peak: bool = False

    def all(self, costs: Sequence[float]) -> float:
        """The cost of several things."""
        return max(costs, default=0.0) if self.peak else sum(costs)


def own_axes(term: Term, axes: Axes) -> Axes:
    """The output axes without those that a term does not depend on: they broadcast when it is added."""
    mine = term.indices
    return tuple(axis if any(index in mine for index in flat((axis,))) else () for axis in axes)


def networks(expression: Expression, operands: Sequence[Operand]) -> tuple[Network, ...]:
    """The products of an expression, without those of no factor; the first has all output axes.

    Args:
        expression: a sum of products.
        operands: what is known of each leaf.
    """
    terms = [term for term in expression.terms if term.factors]
    return tuple(
        Network(
            term, own_axes(term, expression.axes) if n else expression.axes, [operands[f.leaf] for f in term.factors]
        )
        for n, term in enumerate(terms)
    )


def programs(expression: Expression, operands: Sequence[Operand], prices: Prices, most: int) -> list[Program]:
    """Ways to evaluate a sum, the cheapest first; every product alone is always among them.

    Args:
        expression: a sum of products.
        operands: what is known of each leaf.
        prices: what to minimise.
        most: how many at most.
    """
    search = _Search(prices, perf_counter() + _SECONDS)
    found = search.recipes(expression, tuple(operands))
    alone: Recipe = tuple(range(len(expression.terms)))
    recipes = [recipe for recipe, _ in sorted(found.items(), key=lambda pair: pair[1])]
    chosen = [*recipes[:most], *([alone] if alone not in recipes[:most] else [])]
    made = [build(expression, recipe, len(operands)) for recipe in chosen]
    return [program for program in made if program is not None]


def build(expression: Expression, recipe: Recipe, leaves: int) -> Program | None:
    """The program of a recipe; None where a group of it has no exact form.

    Args:
        expression: the sum.
        recipe: how to evaluate it.
        leaves: the number of leaves; steps define the next ones.
    """
    steps = _steps(expression, recipe, leaves)
    return None if steps is None else Program(leaves, steps, recipe)


def with_steps(program: Program, operands: Sequence[Operand]) -> tuple[Operand, ...]:
    """What is known of each leaf and of what each step defines."""
    known = list(operands)
    for step in program.steps:
        known.append(_operand(step, known))
    return tuple(known)


def _operand(step: Step, known: Sequence[Operand]) -> Operand:
    read = [known[leaf] for leaf in sources(step)]
    return Operand(all(o.constant for o in read), any(o.needs_grad for o in read))


def _steps(expression: Expression, recipe: Recipe, first: int) -> tuple[Step, ...] | None:
    steps: list[Step] = []
    terms: list[Term] = []
    for part in recipe:
        if isinstance(part, int):
            terms.append(expression.terms[part])
            continue
        result = factor_out(expression, part.members, part.core, first + len(steps), _namer())
        if isinstance(result, str):
            return None
        term, inner = result
        rest = inner[-1]
        assert isinstance(rest, Expression)
        steps += inner[:-1]
        deeper = _steps(rest, part.inner, first + len(steps))
        if deeper is None:
            return None
        steps += deeper
        factors = (*term.factors[:-1], _moved(term, first + len(steps) - 1))
        terms.append(Term(factors, term.windows, term.coefficient))
    return (*steps, Expression(expression.axes, tuple(terms)))


def _moved(term: Term, leaf: int) -> Factor:
    return Factor(leaf, term.factors[-1].axes)


_NUMBERS = count()


def _namer() -> Callable[[Index], Index]:
    return lambda index: Index(f"{index.name.partition('#')[0]}#z{next(_NUMBERS)}", index.size, index.symbol)


class _Search:
    """One search and those of the sums within it, which share their prices."""

    def __init__(self, prices: Prices, deadline: float) -> None:
        self.prices = prices
        self.deadline = deadline
        self.known: dict[object, float] = {}
        self.sums: dict[object, dict[Recipe, float]] = {}

    def recipes(
        self, expression: Expression, operands: tuple[Operand, ...], eyes: frozenset[int] = frozenset()
    ) -> dict[Recipe, float]:
        """All evaluations that were looked at, with their prices; `eyes` are leaves that are identity matrices.

        The same sum is left by cores that are taken out in another order: it is searched once.
        """
        key = canonical(expression), operands, eyes
        if key not in self.sums:
            self.sums[key] = _Sum(self, expression, operands, eyes).search()
        return self.sums[key]

    def product(self, term: Term, axes: Axes, operands: Sequence[Operand]) -> float:
        """The price of a product; equal ones are priced once."""
        if not term.factors:
            return 0.0
        leaves = {factor.leaf: n for n, factor in enumerate(term.factors)}
        numbered = Term(tuple(Factor(leaves[f.leaf], f.axes) for f in term.factors), term.windows)
        known = tuple(operands[leaf] for leaf in leaves)
        key = (canonical(Expression(axes, (numbered,))), known)
        if key not in self.known:
            try:
                network = Network(numbered, axes, [operands[f.leaf] for f in term.factors])
                self.known[key] = self.prices.product(network)
            except ValueError as reason:  # no product of this kind can be planned
                log.debug("%s", reason)
                self.known[key] = inf
        return self.known[key]


class _Sum:
    """The search for one sum."""

    def __init__(
        self, search: _Search, expression: Expression, operands: tuple[Operand, ...], eyes: frozenset[int]
    ) -> None:
        self.search_of = search
        self.eyes = eyes
        self.expression = expression
        self.operands = operands
        self.result = _operand(expression, operands)
        self.alone = [self._product(term) for term in expression.terms]
        self.whole = [own_axes(term, expression.axes) == expression.axes for term in expression.terms]
        self.cores = _cores(expression, eyes)
        self.groups: dict[tuple[int, tuple[int, ...]], tuple[Group, float] | None] = {}

    def search(self) -> dict[Recipe, float]:
        """Try all assignments, or improve some."""
        terms = self.expression.terms
        options: list[list[int | None]] = [
            [None, *(c for c, (_, members) in enumerate(self.cores) if n in members)] for n in range(len(terms))
        ]
        found: dict[Recipe, float] = {}

        def price(choice: _Choice) -> float:
            recipe, cost = self._evaluate(choice)
            if recipe is not None:
                found[recipe] = min(cost, found.get(recipe, inf))
            return cost

        if prod(map(len, options)) <= _ALL:
            for choice in product(*options):
                if found and perf_counter() > self.search_of.deadline:
                    break
                price(choice)
            return found
        starts: list[_Choice] = [(None,) * len(terms)]
        if perf_counter() > self.search_of.deadline:
            price(starts[0])
            return found
        starts += [tuple(c if c in o else None for o in options) for c in range(len(self.cores))]
        for start in sorted(starts, key=price)[:3]:
            self._improve(start, options, price)
        return found

    def _improve(
        self, start: _Choice, options: Sequence[Sequence[int | None]], price: Callable[[_Choice], float]
    ) -> None:
        """Move one product at a time to where it costs least, until no move helps."""
        best, cost = start, price(start)
        for _ in range(_PASSES):
            before = cost
            for n, choices in enumerate(options):
                for other in choices:
                    if perf_counter() > self.search_of.deadline:
                        return
                    moved = (*best[:n], other, *best[n + 1 :])
                    if other != best[n] and (lower := price(moved)) < cost:
                        best, cost = moved, lower
            if cost >= before:
                return

    def _evaluate(self, choice: _Choice) -> tuple[Recipe | None, float]:
        parts: list[int | Group] = []
        costs: list[float] = []
        for core in dict.fromkeys(choice):
            members = tuple(n for n, c in enumerate(choice) if c == core)
            if core is None or len(members) == 1:
                parts += members
                costs += [self.alone[n] for n in members]
                continue
            group = self._group(core, members)
            if group is None:
                return None, inf
            parts.append(group[0])
            costs.append(group[1])
        parts.sort(key=lambda part: part if isinstance(part, int) else part.members[0])
        whole = sum(self._is_whole(part) for part in parts)
        if whole > 1:
            costs.append(self.search_of.prices.total(whole, prod(self.expression.shape), self.result))
        return tuple(parts), self.search_of.prices.all(costs)

    def _is_whole(self, part: int | Group) -> bool:
        """Whether a part has all axes of the result; a bias is added at little cost."""
        return any(self.whole[member] for member in ((part,) if isinstance(part, int) else part.members))

    def _group(self, core: int, members: tuple[int, ...]) -> tuple[Group, float] | None:
        key = (core, members)
        if key not in self.groups:
            self.groups[key] = self._grouped(self.cores[core][0], members)
        return self.groups[key]

    def _grouped(self, core: tuple[int, ...], members: tuple[int, ...]) -> tuple[Group, float] | None:
        """A group and its price: the core with the new leaf, and the sum that defines it."""
        result = factor_out(self.expression, members, core, len(self.operands), _namer())
        if isinstance(result, str):
            log.debug("no group around %s: %s", core, result)
            return None
        term, steps = result
        known = list(self.operands)
        costs: list[float] = []
        for step in steps[:-1]:
            if isinstance(step, Expression):
                costs.append(self.search_of.product(step.terms[0], step.axes, known))
            else:
                size = step.size**2 if isinstance(step, Eye) else prod(step.sizes)
                costs.append(self.search_of.prices.total(1, size, _operand(step, known)))
            known.append(_operand(step, known))
        rest = steps[-1]
        assert isinstance(rest, Expression)
        made = {len(self.operands) + n for n, step in enumerate(steps) if isinstance(step, Eye)}
        inner = self.search_of.recipes(rest, tuple(known), self.eyes | made)
        recipe, cost = min(inner.items(), key=lambda pair: pair[1])
        known.append(_operand(rest, known))
        costs += [cost, self.search_of.product(term, own_axes(term, self.expression.axes), known)]
        return Group(core, members, recipe), self.search_of.prices.all(costs)

    def _product(self, term: Term) -> float:
        return self.search_of.product(term, own_axes(term, self.expression.axes), self.operands)


def _cores(expression: Expression, eyes: frozenset[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Sets of leaves that several products hold once each, with those products; the larger sets first.

    Identity matrices that an earlier factoring made are none: factoring them out would make others.
    """
    held = [_held_once(term) - eyes for term in expression.terms]
    single = {frozenset((leaf,)) for a, b in combinations(held, 2) for leaf in a & b}
    shared = {a & b for a, b in combinations(held, 2) if a & b}
    for _ in range(2):  # and what several of these have in common
        shared |= {a & b for a, b in combinations(shared, 2) if a & b}
        if len(shared) > 4 * _CORES:
            break
    found = {
        tuple(sorted(core)): tuple(n for n, leaves in enumerate(held) if core <= leaves) for core in (shared | single)
    }
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), -len(item[0]), item))
    return [(core, members) for core, members in ordered if len(members) > 1][:_CORES]


def _held_once(term: Term) -> frozenset[int]:
    leaves = [factor.leaf for factor in term.factors]
    return frozenset(leaf for leaf in leaves if leaves.count(leaf) == 1)
