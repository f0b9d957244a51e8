"""What several products of a sum have in common is evaluated once, where that costs least."""

import random
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import ce_fx
from ce_fx.algebra import Factor, Index, Term
from ce_fx.plan.network import Network
from ce_fx.plan.planner import make_plan
from ce_fx.plan.shared import shared_plans
from tests.plan.brute_force import trees


def chains(seed, count=2):
    """Chains of matrices x.A.B and x.A.C, of random sizes: the first leaves are the same."""
    rng = random.Random(seed)
    common = rng.randint(2, 3)
    start = [Index(f"i{n}", rng.choice([4, 20, 300])) for n in range(common + 1)]
    networks, leaf = [], common
    for n in range(count):
        index = start + [Index(f"j{n}.{k}", rng.choice([2, 5, 40])) for k in range(rng.randint(1, 2))]
        leaves = [*range(common), *range(leaf, leaf + len(index) - 1 - common)]
        leaf = leaves[-1] + 1
        factors = tuple(Factor(one, ((a,), (b,))) for one, a, b in zip(leaves, index, index[1:], strict=False))
        networks.append(Network(Term(factors), ((index[0],), (index[-1],))))
    return networks


def least(networks):
    """The fewest multiply-adds over all trees, the same joins of the same leaves counted once; by definition."""

    def joins(network, tree):
        if isinstance(tree, int):
            return {}, (network.term.factors[tree].leaf,)
        (left, these), (right, those) = joins(network, tree[0]), joins(network, tree[1])
        here = tuple(sorted(these + those))
        letters = [[axis[0] for n in side for axis in leaves[n].axes] for side in (these, those)]
        outside = [axis[0] for n, factor in leaves.items() if n not in here for axis in factor.axes]
        outside += [axis[0] for axis in network.output]
        kept = [{i for i in side if i in outside or i in other} for side, other in (letters, letters[::-1])]
        macs = 1
        for index in kept[0] | kept[1]:
            macs *= index.size
        return {**left, **right, here: macs}, here

    best = float("inf")
    for forest in product(*(trees(tuple(range(network.n))) for network in networks)):
        every = {}
        for network, tree in zip(networks, forest, strict=True):
            leaves = {factor.leaf: factor for factor in network.term.factors}
            every |= joins(network, tree)[0]
        best = min(best, sum(every.values()))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_as_cheap_as_the_best_of_all_forests(seed):
    networks = chains(seed)
    alone = sum(make_plan(network, objective="flops").flops for network in networks)
    found = shared_plans(networks, objective="flops")
    best = least(networks)
    assert best <= alone
    assert (alone if found is None else found[1]) == best


def test_many_products_share_what_none_of_them_would_join_alone():
    x, y, z = Index("x", 1000), Index("y", 64), Index("z", 32)
    networks = []
    for n in range(6):
        out = Index(f"o{n}", 40)
        factors = Factor(0, ((x,), (y,))), Factor(1, ((y,), (z,))), Factor(2 + n, ((z,), (out,)))
        networks.append(Network(Term(factors), ((x,), (out,))))
    assert all(make_plan(network, objective="flops").tree == (0, (1, 2)) for network in networks)
    plans, cost = shared_plans(networks, objective="flops")
    assert [plan.tree for plan in plans] == [((0, 1), 2)] * 6
    assert cost == 1000 * 64 * 32 + 6 * 1000 * 32 * 40


def test_nothing_is_shared_where_that_costs_more():
    assert shared_plans(chains(0, 1), objective="flops") is None
    apart = [chains(1)[0], chains(2)[1]]
    for n, network in enumerate(apart):
        factors = tuple(Factor(10 * n + f.leaf, f.axes) for f in network.term.factors)
        apart[n] = Network(Term(factors), network.output)
    assert shared_plans(apart, objective="flops") is None
    assert shared_plans(chains(3), objective="memory") is None


def branches(x, stem, a, b):
    """A stem and two kernels whose windows do not align; written, it runs twice."""
    return F.conv2d(F.conv2d(x, stem), a, padding=1) + F.conv2d(F.conv2d(x, stem), b, padding=3, dilation=3)


@pytest.mark.parametrize("training", [False, True])
def test_a_stem_of_two_branches_runs_once(training):
    shapes = (2, 64, 16, 16), (12, 64, 1, 1), (2, 12, 3, 3), (2, 12, 3, 3)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=training) for shape in shapes]
    gm = torch.fx.symbolic_trace(branches)
    fast = ce_fx.rewrite(gm, inputs, objective="flops", tune=False)
    assert fast.code.count("conv2d(x") == 1 and gm.code.count("conv2d(x") == 2
    torch.testing.assert_close(fast(*inputs), branches(*inputs), rtol=1e-10, atol=1e-10)
    if training:
        gradients = [torch.autograd.grad(run(*inputs).square().sum(), inputs) for run in (branches, fast)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
