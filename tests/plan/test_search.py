"""Parts of the search by themselves: goals, connected subsets, super-leaves, greedy trees and their improvement."""

import random
from math import inf

import pytest

from ce_fx.algebra import Factor, Index, Tap, Term, Window
from ce_fx.algebra.parser import parse
from ce_fx.plan.costs import flops_goal, peak_goal, saved_goal, signature, time_goal
from ce_fx.plan.greedy import Noise, greedy, reconfigure, starts
from ce_fx.plan.modes import MODES
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.plan import PlanError
from ce_fx.plan.planner import make_plan
from ce_fx.plan.search import (
    SearchLimit,
    components,
    connected,
    connected_sets,
    exact,
    is_connected,
    neighbours,
    splits_table,
)
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import splits_of, step_of, subset_of
from ce_fx.plan.ways import ops_of_way, ways_of
from tests.plan.brute_force import trees
from tests.plan.networks import chain, cp, random_network, train


def leaves_of(network):
    return [1 << n for n in range(network.n)]


def random_chain(n, seed, ring):
    """A chain or ring with links of 2 to 16, each operand with an index of its own that is in the output."""
    rng = random.Random(seed)
    bond = [Index(f"i{k}", rng.choice([2, 3, 8, 16])) for k in range(n + 1)]
    if ring:
        bond[n] = bond[0]
    own = [Index(f"o{k}", rng.choice([1, 2, 5])) for k in range(n)]
    factors = tuple(Factor(k, ((bond[k],), (own[k],), (bond[k + 1],))) for k in range(n))
    ends = () if ring else ((bond[0],), (bond[n],))
    return Network(Term(factors), (*ends, *((index,) for index in own)))


def conv_chain(n, seed):
    """Features and n - 1 kernels on one axis, each kernel sharing a channel index with the one before."""
    rng = random.Random(seed)
    bond = [Index(f"c{k}", rng.choice([2, 4, 16])) for k in range(n)]
    taps = tuple(Tap(Index(f"k{k}", rng.choice([1, 2, 3])), rng.randint(1, 2)) for k in range(1, n))
    out = 20
    size = out + sum(tap.reach for tap in taps)
    features = Index("x", size)
    factors = [Factor(0, ((features,), (bond[0],)))]
    factors += [Factor(k, ((bond[k - 1],), (bond[k],), (taps[k - 1].index,))) for k in range(1, n)]
    window = Window(features, Index("y", out), taps)
    return Network(Term(tuple(factors), (window,)), ((bond[n - 1],), (window.out,)))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_chains_and_rings_lose_nothing_without_outer_products(seed, ring):
    network = random_chain(4 + seed % 7, seed, ring)
    for goal in (flops_goal(network, "forward"), peak_goal(network)):
        full = exact(leaves_of(network), goal)
        found = connected(leaves_of(network), neighbours(network, leaves_of(network)), goal)
        assert full is not None and found is not None
        assert full.cost == found.cost == goal.total(found.splits)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("make_goal", [lambda n: flops_goal(n, "train"), peak_goal, saved_goal])
def test_connected_search_is_exact_among_connected_trees(make_goal, seed):
    """Against the subset search with the same filter, and against all trees without an outer product."""
    network, _, _ = random_network(seed, 5)
    linked = neighbours(network, leaves_of(network))
    if not is_connected(linked, network.everything):
        with pytest.raises(StopIteration):
            next(t for t in trees(tuple(range(network.n))) if all(is_connected(linked, a | b) for a, b in splits_of(t)))
        return
    goal = make_goal(network)
    allowed = [
        splits_table(tree)
        for tree in trees(tuple(range(network.n)))
        if all(is_connected(linked, a | b) for a, b in splits_of(tree))
    ]
    best = min(map(goal.total, allowed))
    for found in (
        connected(leaves_of(network), linked, goal),
        exact(leaves_of(network), goal, adjacent=linked),
    ):
        assert found is not None
        assert found.cost == best == goal.total(found.splits)


def test_connected_search_gives_up_at_its_limit():
    network = cp(9)
    with pytest.raises(SearchLimit):
        connected(
            leaves_of(network), neighbours(network, leaves_of(network)), flops_goal(network, "forward"), prices=99
        )


def test_connected_sets_of_a_chain_and_a_ring():
    """n(n-1)/2 intervals of a chain; n(n-2) arcs of a ring, and the whole."""
    for ring, count in ((False, 45), (True, 81)):
        network = chain(10, ring=ring)
        found = connected_sets(neighbours(network, leaves_of(network)), 1000)
        assert found is not None and len(found) == count
        assert connected_sets(neighbours(network, leaves_of(network)), 20) is None


@pytest.mark.parametrize("seed", range(20))
def test_super_leaves_are_searched_like_leaves(seed):
    """The optimum over the parts of an optimal tree is that tree's cost; each part keeps its own tree."""
    network = train(7) if seed == 0 else conv_chain(8, seed)
    goal = flops_goal(network, "forward")
    best = exact(leaves_of(network), goal)
    assert best is not None
    *_, root = best.splits
    parts = [subset for side in best.splits[root] for subset in (best.splits.get(side) or (side,))]
    inner = {s: pair for s, pair in best.splits.items() if s == root or s in best.splits[root]}
    found = exact(parts, goal)
    assert found is not None
    assert found.cost == goal.total(inner)
    assert exact(parts, goal, cap=found.cost) is None


@pytest.mark.parametrize("seed", range(30))
def test_greedy_trees_are_whole_and_improving_never_hurts(seed):
    network, _, _ = random_network(seed, 7)
    for goal in (flops_goal(network, "forward"), peak_goal(network), saved_goal(network)):
        for splits in (greedy(network), greedy(network, Noise(0.5, 1.0, seed))):
            assert set().union(*splits.values()) >= set(leaves_of(network))
            assert all(a | b == both and not a & b for both, (a, b) in splits.items())
            better = reconfigure(splits, network.everything, goal)
            assert goal.total(better) <= goal.total(splits)
            assert list(better)[-1] == network.everything
            optimum = exact(leaves_of(network), goal)
            assert optimum is not None
            if network.n <= 8:  # one subtree is the whole
                assert goal.total(better) == optimum.cost


@pytest.mark.parametrize("network", [train(13), conv_chain(13, 1), cp(12)], ids=["train", "conv", "cp"])
def test_improved_greedy_trees_come_close_to_the_optimum(network):
    """The fallback of networks that are too large, on networks whose optimum among connected trees is known."""
    goal = flops_goal(network, "forward")
    found = exact(leaves_of(network), goal, adjacent=neighbours(network, leaves_of(network)))
    assert found is not None
    best = min(goal.total(reconfigure(s, network.everything, goal)) for s in starts(network, goal, 64)[:6])
    assert best <= 1.05 * found.cost


def test_starts_are_the_same_each_time():
    network = cp(13)
    goal = flops_goal(network, "forward")
    assert starts(network, goal, 8) == starts(network, goal, 8)


@pytest.mark.parametrize("seed", range(60))
def test_steps_with_one_signature_have_the_same_ops(seed):
    """Prices are remembered by signature, so two steps of a network may not differ where it does not."""
    network, _, _ = random_network(seed, 6) if seed % 2 else (conv_chain(6, seed), None, None)
    seen = {}
    for left in range(1, network.everything + 1):
        for right in range(1, network.everything + 1):
            if not left & right:
                step = step_of(network, left, right)
                ops = [(way, ops_of_way(step, network, way)) for way in ways_of(step, network)]
                assert seen.setdefault(signature(network, left, right), ops) == ops
    assert len(seen) > 1


LARGE = {
    "cp": ("bshw,rt,rs,rh,rw->bthw|hw", [(8, 64, 56, 56), (16, 64), (16, 64), (16, 3), (16, 3)]),
    "tucker": ("bshw,su,uvhw,tv->bthw|hw", [(8, 128, 28, 28), (128, 38), (38, 38, 3, 3), (128, 38)]),
    "two kernels": ("bsh,srh,rth,tu->buh|h", [(4, 32, 400), (32, 8, 5), (8, 48, 7), (48, 64)]),
}


def large(name):
    string, shapes = LARGE[name]
    parsed = parse(string, shapes)
    weights = [Operand(constant=True, needs_grad=True)] * (len(shapes) - 1)
    return Network(parsed.term, parsed.output, [Operand(), *weights])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LARGE)
def test_time_of_real_layers_is_minimal_and_its_bound_is_one(name, mode):
    """A step that leaves no room is answered with a lower bound of its price, so that nothing good is dropped."""
    network = large(name)
    goal = time_goal(network, mode, TimeModel.default("cpu"))
    best = min(goal.total(splits_table(tree)) for tree in trees(tuple(range(network.n))))
    assert make_plan(network, objective="time", mode=mode).cost == pytest.approx(best)
    for left in range(1, network.everything + 1):
        for right in range(1, network.everything + 1):
            if not left & right:
                assert 0 < goal.step(left, right, 0) <= goal.step(left, right, inf)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_has_one_price_in_either_order(seed):
    network = conv_chain(5, seed)
    model = TimeModel.default("cpu")
    for goal in (time_goal(network, "forward", model), flops_goal(network, "train"), saved_goal(network)):
        for left in range(1, network.everything):
            right = network.everything & ~left
            assert goal.step(left, right, inf) == goal.step(right, left, inf)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(15))
def test_time_of_every_mode_is_minimal_over_all_trees(mode, seed):
    network, _, _ = random_network(seed, 5)
    goal = time_goal(network, mode, TimeModel.default("cpu"))
    best = min(goal.total(splits_table(tree)) for tree in trees(tuple(range(network.n))))
    assert make_plan(network, objective="time", mode=mode).cost == pytest.approx(best)


@pytest.mark.parametrize("seed", range(30))
def test_fold_counts_a_thousandth_of_bounded_steps(seed):
    """All constants together may be folded; twice the dense kernel or the largest operand is the bound."""
    network, _, _ = random_network(seed, 5)
    bound = 2 * max(network.size(network.constant), *(network.operand_size(n) for n in range(network.n)))

    def cost(tree):
        total = 0.0
        for a, b in splits_of(tree):
            folded = not (a | b) & ~network.constant and network.size(a | b) <= bound
            total += network.flops(a, b) * (1e-3 if folded else 1)
        return total

    plan = make_plan(network, mode="fold")
    assert plan.cost == pytest.approx(min(map(cost, trees(tuple(range(network.n))))))
    assert plan.cost == pytest.approx(cost(plan.tree))


@pytest.mark.parametrize("objective", ["flops", "memory", "time"])
def test_memory_limit_beyond_the_exact_range(objective):
    network = train(15)
    free = make_plan(network, objective=objective)
    least = make_plan(network, objective="memory").largest
    assert make_plan(network, objective=objective, memory_limit=least).largest == least <= free.largest
    with pytest.raises(PlanError, match=f"has {least} "):
        make_plan(network, objective=objective, memory_limit=least - 1)


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_finished_before_they_are_joined(seed, monkeypatch):
    """Links of size 1 are none; the search beyond the exact range treats what they join as parts of their own."""
    rng = random.Random(seed)
    bond = [Index(f"i{k}", 1 if k in (3, 6) else rng.choice([2, 3, 8])) for k in range(10)]
    own = [Index(f"o{k}", rng.choice([1, 2, 5])) for k in range(9)]
    factors = tuple(Factor(k, ((bond[k],), (own[k],), (bond[k + 1],))) for k in range(9))
    network = Network(Term(factors), ((bond[0],), (bond[9],), *((index,) for index in own)))
    assert len(components(neighbours(network, leaves_of(network)))) == 3
    best = make_plan(network).flops
    monkeypatch.setattr("ce_fx.plan.planner._EXACT", 4)
    plan = make_plan(network)
    assert (plan.method, plan.flops) == ("connected", best)


def test_disconnected_operands_beyond_the_exact_range():
    factors = tuple(Factor(k, ((Index(f"a{k // 2}", 3),), (Index(f"b{k}", 2),))) for k in range(16))
    network = Network(Term(factors), tuple((Index(f"b{k}", 2),) for k in range(16)))
    plan = make_plan(network)
    assert subset_of(plan.tree) == network.everything
    assert plan.flops <= make_plan(network, optimize="written").flops


def test_one_and_two_operands_are_not_searched():
    a, b = Index("a", 3), Index("b", 4)
    one = make_plan(Network(Term((Factor(0, ((a,), (b,))),)), ((b,),)))
    assert (one.tree, one.flops, one.largest, one.cost, one.method) == (0, 0, 4, 0, "written")
    two = make_plan(Network(Term((Factor(0, ((a,),)), Factor(1, ((a,), (b,))))), ((b,),)))
    assert (two.tree, two.flops, two.largest, two.method) == ((0, 1), 12, 4, "written")
    with pytest.raises(PlanError, match="at least 4"):
        make_plan(two.network, memory_limit=3)


def test_a_size_of_zero_is_planned():
    network = chain(5, sizes=[2, 3, 0, 4, 5, 6])
    for objective in ("flops", "memory", "time"):
        assert make_plan(network, objective=objective).cost < inf


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"objective": "speed"}, "objective must be one of 'flops', 'time', 'memory', not 'speed'"),
        ({"mode": "eval"}, "mode must be one of 'forward', 'train', 'checkpoint', 'fold', not 'eval'"),
        ({"optimize": "best"}, "optimize must be one of 'auto', 'optimal', 'greedy', 'written', not 'best'"),
    ],
)
def test_unknown_options_are_named(option, message):
    with pytest.raises(PlanError) as error:
        make_plan(chain(3), **option)
    assert message in str(error.value)


def test_optimal_refuses_what_takes_too_long():
    with pytest.raises(PlanError, match="up to 16. Use 'auto'"):
        make_plan(chain(17), optimize="optimal")


def test_the_order_as_written_may_be_given():
    network = chain(4)
    plan = make_plan(network, optimize="written", written=((0, 1), (2, 3)))
    assert plan.tree == ((0, 1), (2, 3))
