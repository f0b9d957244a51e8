"""The planner against brute force over all trees, and its behaviour at the edges."""

from dataclasses import replace
from math import inf

import opt_einsum
import pytest

from ce_fx.algebra.parser import parse
from ce_fx.plan.costs import flops_goal, foldable
from ce_fx.plan.greedy import greedy
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.path_info import path_info
from ce_fx.plan.plan import PlanError
from ce_fx.plan.planner import make_plan, path_of_tree, tree_of_path, written_tree
from ce_fx.plan.search import exact
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import splits_of, subset_of
from tests.plan.brute_force import operands_of, price, trees
from tests.plan.networks import chain, cp, random_network, train

SMALL = range(320)  # networks of up to 5 operands: all of their trees
LARGE = range(1000, 1012)  # networks of up to 7 operands


def prices(problem, network, grads):
    """The costs of all trees of a network."""
    return [(tree, price(problem, tree, grads)) for tree in trees(tuple(range(network.n)))]


def check(seed, most):
    network, problem, grads = random_network(seed, most)
    everything = prices(problem, network, grads)

    def best(key):
        return min(cost[key] for _, cost in everything)

    # sizes and costs of a subset are those that this very tree's positions give
    tree, cost = everything[seed % len(everything)]
    for subset, size in cost["sizes"].items():
        assert network.size(sum(1 << n for n in subset)) == size
    assert sum(network.flops(a, b) for a, b in splits_of(tree)) == cost["flops"]

    plan = make_plan(network, objective="flops")
    assert plan.flops == best("flops") == price(problem, plan.tree)["flops"]
    assert plan.largest == price(problem, plan.tree)["largest"]
    plan = make_plan(network, objective="flops", mode="train")
    assert price(problem, plan.tree, grads)["train"] == best("train")
    plan = make_plan(network, objective="flops", mode="checkpoint")
    assert price(problem, plan.tree, grads)["checkpoint"] == best("checkpoint")
    plan = make_plan(network, objective="memory")
    least = best("largest")
    assert plan.largest == least
    assert plan.flops == min(c["flops"] for _, c in everything if c["largest"] == least)
    plan = make_plan(network, objective="memory", mode="train")
    mine = price(problem, plan.tree, grads)
    assert (mine["saved"], mine["train"]) == min((c["saved"], c["train"]) for _, c in everything)
    limit = sorted(c["largest"] for _, c in everything)[len(everything) // 3]
    plan = make_plan(network, objective="flops", memory_limit=limit)
    assert plan.flops == min(c["flops"] for _, c in everything if c["largest"] <= limit)
    with pytest.raises(PlanError, match="smallest possible"):
        make_plan(network, objective="flops", memory_limit=least - 1)


@pytest.mark.fuzz
@pytest.mark.parametrize("block", range(16))
def test_optimal_over_all_trees(block):
    for seed in SMALL[block::16]:
        check(seed, 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", LARGE)
def test_optimal_up_to_seven_operands(seed):
    check(seed, 7)


def test_brute_force_enumerates_every_tree():
    """(2n - 3)!! trees: 3, 15, 105."""
    assert [sum(1 for _ in trees(tuple(range(n)))) for n in (3, 4, 5)] == [3, 15, 105]
    assert all(sorted(operands_of(tree)) == [0, 1, 2, 3] for tree in trees((0, 1, 2, 3)))


@pytest.mark.parametrize("seed", range(40))
def test_without_convolutions_it_matches_opt_einsum(seed):
    """opt_einsum's dynamic programming, made to count as we do: only costs of the same path are compared."""
    network, problem, _ = random_network(seed, 6, axes=0)
    names = {x: opt_einsum.get_symbol(i) for i, x in enumerate(sorted(problem.sizes))}
    terms = ["".join(names[x] for x in sorted(term)) for term in problem.terms]
    string = ",".join(terms) + "->" + "".join(names[x] for x in sorted(problem.output))
    shapes = [tuple(problem.sizes[x] for x in sorted(term)) for term in problem.terms]
    path, _ = opt_einsum.contract_path(string, *shapes, shapes=True, optimize=opt_einsum.DynamicProgramming("flops"))
    if any(len(pair) != 2 for pair in path):
        return  # it joins disconnected parts its own way
    theirs = make_plan(network, objective="flops", optimize=path)
    assert make_plan(network, objective="flops").flops <= theirs.flops


@pytest.mark.parametrize("n", [4, 7, 10])
@pytest.mark.parametrize("ring", [False, True])
def test_chains_and_rings_lose_nothing_without_outer_products(n, ring):
    """Beyond 12 operands only connected intermediates are searched; up to 10 that gives the true optimum here."""
    network = chain(n, ring=ring)
    goal = flops_goal(network, "forward")
    leaves = [1 << k for k in range(n)]
    from ce_fx.plan.search import connected, neighbours

    full, found = exact(leaves, goal), connected(leaves, neighbours(network, leaves), goal)
    assert full is not None and found is not None
    assert full.cost == found.cost


@pytest.mark.parametrize("ring", [False, True])
def test_twenty_operands_in_a_chain_or_ring(ring):
    plan = make_plan(chain(20, ring=ring), objective="flops")
    assert plan.method == "connected"
    assert plan.flops <= make_plan(chain(20, ring=ring), objective="flops", optimize="greedy").flops


@pytest.mark.slow
@pytest.mark.parametrize("network", [train(11), cp(11), chain(12)], ids=["train", "cp", "chain"])
def test_twelve_operands_are_planned_exactly(network):
    assert network.n == 12
    assert make_plan(network, objective="flops").method == "optimal"


@pytest.mark.parametrize(
    ("network", "most"), [(train(11), 261_625), (cp(11), 261_625), (chain(12), 52_325)], ids=["train", "cp", "chain"]
)
def test_twelve_operands_price_no_split_twice(network, most):
    """What bounds the time of a plan: the (3^12 - 2^13 + 1)/2 splits; where the bound helps, a fifth of them."""
    goal = flops_goal(network, "forward")
    priced = 0

    def step(left, right, room):
        nonlocal priced
        priced += 1
        return goal.step(left, right, room)

    cap = goal.total(greedy(network))
    exact([1 << n for n in range(12)], replace(goal, step=step), cap)
    assert 0 < priced <= most <= (3**12 - 2**13 + 1) // 2


@pytest.mark.slow
@pytest.mark.parametrize("network", [train(15), cp(15)], ids=["train", "cp"])
def test_beyond_the_exact_range_greedy_is_improved(network):
    plan = make_plan(network, objective="flops")
    assert plan.flops <= make_plan(network, objective="flops", optimize="greedy").flops
    assert subset_of(plan.tree) == network.everything


@pytest.mark.parametrize("objective", ["flops", "memory", "time"])
@pytest.mark.parametrize("mode", ["forward", "train", "fold"])
@pytest.mark.parametrize("seed", range(12))
def test_never_worse_than_as_written(objective, mode, seed):
    network, _, _ = random_network(seed, 6)
    written = make_plan(network, objective=objective, mode=mode, optimize="written")
    assert written.tree == written_tree(network.n)
    assert make_plan(network, objective=objective, mode=mode).cost <= written.cost


def test_time_is_minimised_over_all_trees():
    network, _, _ = random_network(5, 5)
    plans = [
        make_plan(network, objective="time", optimize=path_of_tree(tree, network.n)).cost
        for tree in trees(tuple(range(network.n)))
    ]
    assert make_plan(network, objective="time").cost == pytest.approx(min(plans))


def test_folded_weights_are_nearly_free_but_bounded():
    parsed = parse("bi,ij,jk,kl->bl", [(2, 64), (64, 64), (64, 64), (64, 64)])
    operands = [Operand(), *[Operand(constant=True)] * 3]
    network = Network(parsed.term, parsed.output, operands)
    plan = make_plan(network, objective="flops", mode="fold")
    assert plan.tree in ((0, ((1, 2), 3)), (0, (1, (2, 3))))
    parsed = parse("bi,i,j,bj->b", [(2, 500), (500,), (500,), (2, 500)])
    network = Network(parsed.term, parsed.output, [Operand(), *[Operand(constant=True)] * 2, Operand()])
    assert network.size(0b0110) == 250_000  # the outer product of the two vectors
    assert foldable(network, 0b0110)  # it is the dense kernel itself
    parsed = parse("bi,ir,jr,bj->b", [(2, 500), (500, 1), (500, 1), (2, 500)])
    assert make_plan(Network(parsed.term, parsed.output, network.operands), objective="flops", mode="fold").cost < inf


def test_paths_and_trees_are_inverse():
    for tree in trees((0, 1, 2, 3)):
        assert subset_of(tree_of_path(path_of_tree(tree, 4), 4)) == 0b1111
        assert set(splits_of(tree_of_path(path_of_tree(tree, 4), 4))) <= {
            pair for a, b in splits_of(tree) for pair in ((a, b), (b, a))
        }


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([(0, 0), (0, 1)], "path entry 0 is (0, 0)"),
        ([(0, 1)], "joins 3 operands into 2 results; it needs 2 pairs"),
        ([(0, 1, 2)], "path entry 0 is (0, 1, 2)"),
    ],
)
def test_bad_paths(path, message):
    with pytest.raises(PlanError) as error:
        make_plan(chain(3), optimize=path)
    assert message in str(error.value)


def test_path_info_tells_totals_and_steps():
    parsed = parse("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)])
    info = path_info(make_plan(Network(parsed.term, parsed.output)))
    assert (info.naive_cost, info.opt_cost) == (2 * 3 * 4 * 5 * 2, 2 * 3 * 4 + 2 * 4 * 5)
    assert [step.string for step in info.steps] == ["ab,bc->ac", "ac,cd->ad"]
    assert info.contraction_list[0][0] == (0, 1)
    assert info.size_dict == {"a": 2, "b": 3, "c": 4, "d": 5}
    assert str(info).splitlines()[0].strip() == "Complete contraction:  ab,bc,cd->ad"


def test_time_model_round_trips_and_follows_its_formula():
    from ce_fx.plan.ops import Op

    model = TimeModel.default("cpu")
    assert TimeModel.from_dict(model.to_dict()) == model
    rates = model.forward_rates["conv"]
    op = Op("conv", 10**9, 576, 64, 3136, 10**6)
    thin = (1 + rates.k0 / 576) * (1 + rates.n0 / 64) * (1 + rates.m0 / 3136)
    assert model.forward(op) == pytest.approx(rates.t0 + 10**9 * thin / rates.rate + 4 * 10**6 / rates.bandwidth)
    both = model.forward_backward(op)
    assert model.seconds([op], grads=1) == pytest.approx((model.forward(op) + both) / 2)
    data = model.to_dict()
    del data["forward"]["mm"]
    with pytest.raises(ValueError, match="lack mm"):
        TimeModel.from_dict(data)
