"""The plans that the clock chooses from, and the search that ranks them."""

from math import inf

import pytest

from ce_fx.algebra.parser import parse
from ce_fx.plan.candidates import make_plans
from ce_fx.plan.costs import flops_goal, time_goal
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.plan import PlanError
from ce_fx.plan.planner import make_plan, written_tree
from ce_fx.plan.ranked import several
from ce_fx.plan.search import splits_table
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import splits_of, step_of
from ce_fx.plan.ways import _CAUTION, best_way, ops_of_way, ways_of
from tests.plan.brute_force import trees
from tests.plan.networks import random_network

TT = ("bshw,sx,xhy,ywz,zt->bthw|hw", [(8, 64, 14, 14), (64, 26), (26, 3, 2), (2, 3, 26), (26, 64)])


def network_of(string, shapes, grads=True):
    parsed = parse(string, shapes)
    weights = [Operand(constant=True, needs_grad=grads)] * (len(shapes) - 1)
    return Network(parsed.term, parsed.output, [Operand(), *weights])


@pytest.mark.parametrize("seed", range(40))
def test_the_ranking_is_that_of_brute_force(seed):
    network, _, _ = random_network(seed, 5)
    for goal in (flops_goal(network, "train"), time_goal(network, "forward", TimeModel.default("cpu"))):
        every = sorted(goal.total(splits_table(tree)) for tree in trees(tuple(range(network.n))))
        found = several([1 << n for n in range(network.n)], goal, 7, inf)
        assert [tree.cost for tree in found] == pytest.approx(every[:7])
        assert [goal.total(tree.splits) for tree in found] == pytest.approx(every[:7])
        assert len({frozenset(tree.splits) for tree in found}) == len(found), "no tree comes twice"


def test_the_cap_leaves_out_what_costs_as_much():
    network = network_of(*TT)
    goal = flops_goal(network, "forward")
    leaves = [1 << n for n in range(network.n)]
    costs = [tree.cost for tree in several(leaves, goal, 20, inf)]
    assert [tree.cost for tree in several(leaves, goal, 20, costs[5])] == [c for c in costs if c < costs[5]]


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_best_the_written_the_fewest_flops_and_the_dense_are_among_them(mode):
    network = network_of(*TT)
    plans = make_plans(network, mode=mode, count=8)
    keys = {frozenset(left | right for left, right in splits_of(plan.tree)) for plan in plans}
    assert len(keys) == len(plans) >= 5, "all are different"
    best = make_plan(network, objective="time", mode=mode)
    assert plans[0].cost == pytest.approx(best.cost) and plans[0].method == "time"
    assert min(plan.flops for plan in plans) == make_plan(network, mode=mode).flops
    assert frozenset(left | right for left, right in splits_of(written_tree(5))) in keys
    assert any(0b11110 in key for key in keys), "the kernel is rebuilt in one of them"
    assert [plan.cost for plan in plans] == sorted(plan.cost for plan in plans)


def test_plans_keep_to_the_memory_limit_in_the_ways_of_their_kinds():
    network = network_of(*TT)
    limit = network.size(network.everything)
    plans = make_plans(network, memory_limit=limit)
    assert plans and all(plan.largest <= limit and not plan.ways for plan in plans)
    with pytest.raises(PlanError, match="memory limit"):
        make_plans(network, memory_limit=limit - 1)


def test_two_operands_have_one_plan():
    assert len(make_plans(network_of("bshw,sthw->bthw|hw", [(2, 3, 8, 8), (3, 4, 3, 3)]))) == 1


def test_a_way_is_taken_where_it_is_faster_by_more_than_the_error():
    network = network_of(*TT)
    model = TimeModel.default("cpu")
    for left in range(1, network.everything):
        for right in range(left + 1, network.everything + 1):
            if left & right:
                continue
            step = step_of(network, left, right)
            seconds, way = best_way(step, network, model, 0)
            first = ways_of(step, network)[0]
            usual = model.seconds(ops_of_way(step, network, first))
            assert seconds == usual if way == first else seconds < usual
            assert seconds <= min(
                _CAUTION * model.seconds(ops_of_way(step, network, w)) for w in ways_of(step, network)
            )
