"""Factoring a sum gives the same function: every core of random sums, step by step by definition."""

import random
from itertools import combinations

import pytest
import torch

from ce_fx.algebra import Expression, Factor, Index, Tap, Term, Window
from ce_fx.algebra.canonical import canonical
from ce_fx.algebra.factor import factor_out
from ce_fx.algebra.program import Eye, Group, Place, Program
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.sums import Prices, _Sum, build, networks, own_axes, programs, with_steps
from tests.evaluate import evaluate

B, H = Index("b", 2), Index("h", 7)


def run(program, leaves):
    """The value of a program, each step by its definition."""
    values = list(leaves)
    for step in program.steps:
        if isinstance(step, Eye):
            values.append(torch.eye(step.size, dtype=torch.float64))
        elif isinstance(step, Place):
            values.append(placed(values[step.leaf].reshape(step.shape), step))
        else:
            values.append(evaluate(step, values))
    return values[-1]


def placed(leaf, step):
    result = torch.zeros(step.sizes, dtype=torch.float64)
    where = [
        offset + gap * torch.arange(size)
        for size, gap, offset in zip(step.shape, step.steps, step.offsets, strict=True)
    ]
    result[torch.meshgrid(*where, indexing="ij")] = leaf
    return result


class Sums:
    """Random sums over the output b, t, o: branches of a block on one input, or on two."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.numbers = 0
        self.shapes = {}

    def index(self, name, size):
        self.numbers += 1
        return Index(f"{name}#{self.numbers}", size)

    def leaf(self, *axes, number=None):
        number = len(self.shapes) if number is None else number
        self.shapes.setdefault(number, [index.size for (index,) in axes])
        return Factor(number, axes)

    def expression(self):
        size = self.random.choice([3, 4])
        t, o = self.index("t", size), self.index("o", 7)
        self.stride = 1
        self.shapes = {0: [2, size, 7], 1: [2, size, 7]}
        terms = tuple(self.branch(t, o) for _ in range(self.random.randint(2, 5)))
        return Expression(((B,), (t,), (o,)), terms)

    def branch(self, t, o):
        kind = self.random.choice(["conv", "conv", "pointwise", "bottleneck", "identity", "scale", "depthwise"])
        x = self.random.choice([0, 0, 0, 1])
        c = self.random.choice([1, 2, -0.5])
        s, h = self.index("s", t.size), self.index("h", 7)
        if kind == "identity":
            return Term((Factor(x, ((B,), (t,), (o,))),), (), c)
        if kind == "scale":
            return Term((Factor(x, ((B,), (t,), (o,))), self.leaf((t,))), (), c)
        if kind == "pointwise":
            return Term((Factor(x, ((B,), (s,), (o,))), self.leaf((t,), (s,))), (), c)
        size, dilation = self.random.choice([(3, 1), (5, 1), (3, 2), (2, 1)])
        k = self.index("k", size)
        reach = dilation * (size - 1)
        pad = self.random.randint(0, reach) if size == 2 else reach // 2
        window = Window(h, o, (Tap(k, dilation),), 1, pad)
        if kind == "depthwise":
            return Term((Factor(x, ((B,), (t,), (h,))), self.leaf((t,), (k,))), (window,), c)
        if kind == "conv":
            return Term((Factor(x, ((B,), (s,), (h,))), self.leaf((t,), (s,), (k,))), (window,), c)
        r, j = self.index("r", 2), self.index("j", 2)
        both = Window(h, o, (Tap(k, dilation), Tap(j, 1)), 1, pad)
        return Term(
            (Factor(x, ((B,), (s,), (h,))), self.leaf((r,), (s,), (k,)), self.leaf((t,), (r,), (j,))), (both,), c
        )

    def leaves(self):
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(self.shapes[n], dtype=torch.float64, generator=generator) for n in range(len(self.shapes))]


@pytest.mark.parametrize("seed", range(60))
def test_every_group_of_a_random_sum_is_exact(seed):
    sums = Sums(seed)
    expression = sums.expression()
    leaves = sums.leaves()
    expected = evaluate(expression, leaves)
    for size in range(2, len(expression.terms) + 1):
        for members in combinations(range(len(expression.terms)), size):
            held = [{f.leaf for f in expression.terms[m].factors} for m in members]
            for core in sorted(set.intersection(*held)):
                inner = tuple(range(size))
                rest = tuple(n for n in range(len(expression.terms)) if n not in members)
                program = build(expression, (Group((core,), members, inner), *rest), len(leaves))
                assert program is not None
                torch.testing.assert_close(run(program, leaves), expected, rtol=1e-10, atol=1e-10)


def flops(network):
    """Left to right."""
    total, done = 0, 1
    for n in range(1, network.n):
        total += network.flops(done, 1 << n)
        done |= 1 << n
    return total


PRICES = Prices(flops, lambda parts, elements, result: 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_programs_of_a_random_sum_are_exact_and_priced_right(seed):
    sums = Sums(seed)
    expression = sums.expression()
    leaves = sums.leaves()
    operands = [Operand()] * len(leaves)
    found = programs(expression, operands, PRICES, 6)
    expected = evaluate(expression, leaves)
    costs = []
    for program in found:
        torch.testing.assert_close(run(program, leaves), expected, rtol=1e-10, atol=1e-10)
        known = with_steps(program, operands)
        costs.append(sum(flops(n) for step in program.expressions for n in networks(step, known)))
    alone = [program for program in found if len(program.steps) == 1]
    assert len(alone) == 1
    assert costs[0] == min(costs)
    assert costs[:-1] == sorted(costs[:-1])


def test_parallel_kernels_on_one_input_become_one():
    """RepVGG: 3x3, 1x1 and identity."""
    b, t, s, r, h, g, o = (Index(n, size) for n, size in zip("btsrhgo", (2, 4, 4, 4, 7, 7, 7), strict=True))
    k = Index("k", 3)
    x = lambda c, i: Factor(0, ((b,), (c,), (i,)))  # noqa: E731
    expression = Expression(
        ((b,), (t,), (o,)),
        (
            Term((x(s, h), Factor(1, ((t,), (s,), (k,)))), (Window(h, o, (Tap(k),), 1, 1),)),
            Term((x(r, o), Factor(2, ((t,), (r,))))),
            Term((x(t, o),)),
        ),
    )
    program = build(expression, (Group((0,), (0, 1, 2), (0, 1, 2)),), 3)
    assert program is not None
    leaves = [torch.randn(shape, dtype=torch.float64) for shape in [(2, 4, 7), (4, 4, 3), (4, 4)]]
    torch.testing.assert_close(run(program, leaves), evaluate(expression, leaves))
    (term,) = program.steps[-1].terms
    assert len(term.factors) == 2
    assert [tap.index.size for tap in term.windows[0].taps] == [3]


def test_what_joins_a_core_in_two_ways_is_refused():
    b, t, s = Index("b", 4), Index("t", 4), Index("s", 4)
    x, a = Factor(0, ((b,), (s,))), Factor(1, ((s,), (t,)))
    turned = Factor(1, ((t,), (s,)))
    expression = Expression(((b,), (t,)), (Term((x, a, Factor(2, ((t,),)))), Term((x, turned, Factor(3, ((t,),))))))
    reason = factor_out(expression, (0, 1), (0, 1), 4, lambda i: Index(i.name + "'", i.size))
    assert reason == "the leaves of the core are joined in different ways"


def test_sixteen_products_are_planned_within_seconds():
    sums = Sums(3)
    t, o = sums.index("t", 4), sums.index("o", 7)
    sums.shapes = {0: [2, 4, 7], 1: [2, 4, 7]}
    expression = Expression(((B,), (t,), (o,)), tuple(sums.branch(t, o) for _ in range(16)))
    found = programs(expression, [Operand()] * len(sums.shapes), PRICES, 4)
    assert found
    assert isinstance(found[0], Program)


def test_what_is_left_by_cores_in_another_order_is_searched_once(monkeypatch):
    """`x.A.B.C.D + x.A.B.C.E + x.A.B.C.D.g`: x may be taken out before A or after it, and so on."""
    i = [Index(f"i{n}", 3) for n in range(5)]
    x, *chain = (Factor(n, ((i[n - 1] if n else B,), (i[n],))) for n in range(5))
    other, scale = Factor(5, chain[-1].axes), Factor(6, ((i[4],),))
    terms = (Term((x, *chain)), Term((x, *chain[:-1], other)), Term((x, *chain, scale)))
    search, searched = _Sum.search, []

    def counted(one):
        searched.append((canonical(one.expression), one.operands, one.eyes))
        return search(one)

    monkeypatch.setattr(_Sum, "search", counted)
    programs(Expression(((B,), (i[4],)), terms), [Operand()] * 7, PRICES, 6)
    assert len(searched) == len(set(searched)) > 10


def partitions(items):
    """All ways to put items into blocks."""
    if not items:
        yield []
        return
    first, *rest = items
    for blocks in partitions(rest):
        yield [[first], *blocks]
        for n, block in enumerate(blocks):
            yield [*blocks[:n], [first, *block], *blocks[n + 1 :]]


def least(expression, operands):
    """The fewest multiply-adds of all forms: every partition, every core of every block, and so on for what is left."""
    names = iter(range(10**6))

    def price(term, axes, known):
        own = own_axes(term, axes)
        return flops(Network(term, own, [known[f.leaf] for f in term.factors])) if term.factors else 0

    def block_price(members):
        if len(members) == 1:
            return price(expression.terms[members[0]], expression.axes, operands)
        held = [[f.leaf for f in expression.terms[m].factors] for m in members]
        shared = sorted(set.intersection(*map(set, held)))
        lowest = float("inf")
        for size in range(1, len(shared) + 1):
            for core in combinations(shared, size):
                fresh = lambda i: Index(f"{i.name.partition('#')[0]}#q{next(names)}", i.size)  # noqa: E731
                result = factor_out(expression, members, core, len(operands), fresh)
                if isinstance(result, str):
                    continue
                term, steps = result
                known = [*operands, *(Operand() for _ in steps)]
                cost = sum(price(s.terms[0], s.axes, known) for s in steps[:-1] if isinstance(s, Expression))
                cost += least(steps[-1], known[:-1]) + price(term, expression.axes, known)
                lowest = min(lowest, cost)
        return lowest

    return min(
        sum(block_price(sorted(block)) for block in blocks) for blocks in partitions(range(len(expression.terms)))
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_best_program_is_the_best_of_all_forms(seed):
    sums = Sums(seed)
    expression = sums.expression()
    expression = Expression(expression.axes, expression.terms[:4])
    operands = [Operand()] * len(sums.shapes)
    best = programs(expression, operands, PRICES, 1)[0]
    known = with_steps(best, operands)
    cost = sum(flops(n) for step in best.expressions for n in networks(step, known))
    assert cost == least(expression, operands)
