"""What is emitted at the hints of symbolic sizes holds for any sizes: random networks, every way, other sizes."""

import random
from dataclasses import replace

import pytest
import torch

from ce_fx.algebra import Expression, Factor, Index, Tap, Term, Window, substitute
from ce_fx.lower.emit import LoweringError
from ce_fx.plan.network import Network
from tests.evaluate import evaluate
from tests.lower.test_emit import axes, lower, other_ways, random_leaves, trees


def random_network(rng):
    """Features with a symbolic batch and one or two symbolic axes of positions, and one to three kernels."""
    kernels = rng.randint(1, 3)
    batch = Index("b", rng.randint(2, 5), "s0")
    held = [[(batch,)], *([] for _ in range(kernels))]
    channels = [Index(name, rng.randint(2, 3)) for name in "cdef"[: rng.randint(1, 4)]]
    for index in channels:
        for operand in rng.sample(range(kernels + 1), rng.randint(1, kernels + 1)):
            held[operand].append((index,))
    windows = []
    for axis in range(rng.randint(1, 2)):
        taking = rng.sample(range(1, kernels + 1), rng.randint(1, kernels))
        taps = tuple(Tap(Index(f"k{axis}{n}", rng.randint(1, 3)), rng.randint(1, 2)) for n in taking)
        for n, tap in zip(taking, taps, strict=True):
            held[n].append((tap.index,))
        stride = rng.choice((1, 1, 1, 2, 3)) if len(taps) == 1 else 1
        pad, reach = rng.randint(0, 3), sum(tap.reach for tap in taps)
        features = Index(f"i{axis}", max(1, reach + 1 - 2 * pad) + rng.randint(0, 8), f"s{axis + 1}")
        windows.append(with_out(Window(features, Index(f"o{axis}", 1, f"t{axis}"), taps, stride, pad)))
        held[0].append((features,))
    for operand in held:
        rng.shuffle(operand)
    used = [i for i in channels if rng.random() < 0.6]
    output = [(i,) for i in (batch, *used, *(w.out for w in windows))]
    rng.shuffle(output)
    return Term(tuple(Factor(n, tuple(a)) for n, a in enumerate(held)), tuple(windows)), tuple(output)


def with_out(window, right=None):
    """The window with torch's number of positions, with as much padding on the right as on the left."""
    span = window.features.size + window.pad + (window.pad if right is None else right) - window.reach - 1
    return replace(window, out=replace(window.out, size=span // window.stride + 1))


def resized(term, output, size):
    """The same product with other symbolic sizes, by their symbols."""
    windows = [replace(w, features=replace(w.features, size=size[w.features.symbol])) for w in term.windows]
    windows = [with_out(w) for w in windows]
    new = {w.out: n.out for w, n in zip(term.windows, windows, strict=True)}
    found = {i for axis in output for i in axis}.union(*(f.indices for f in term.factors))
    table = {i: (new.get(i) or replace(i, size=size[i.symbol]),) for i in found if i.symbol}
    return substitute(Expression(output, (term,)), {**table, **{w.out: (new[w.out],) for w in term.windows}})


def sizes_of(rng, term):
    """Sizes down to the smallest for which every window has a position."""
    least = {w.features.symbol: max(1, w.reach + 1 - 2 * w.pad) for w in term.windows}
    return {"s0": rng.randint(1, 6), **{symbol: n + rng.choice((0, 1, 2, 9)) for symbol, n in least.items()}}


@pytest.mark.parametrize("seed", range(120))
def test_every_way_holds_for_other_sizes(seed):
    rng = random.Random(seed)
    term, output = random_network(rng)
    network = Network(term, output)
    every = list(trees(list(range(len(term.factors)))))
    for tree in rng.sample(every, min(3, len(every))):
        others = other_ways(network, tree)
        choices = [{}, *({subset: way} for subset, ways in others.items() for way in ways)]
        for ways in rng.sample(choices, min(4, len(choices))):
            try:
                module = lower(term, output, tree, ways=ways)
            except LoweringError as refused:
                assert "symbolic" in str(refused)
                continue
            for _ in range(3):
                other = resized(term, output, sizes_of(rng, term))
                leaves = random_leaves(other.terms[0], seed)
                expected = evaluate(other, dict(enumerate(leaves)))
                torch.testing.assert_close(module(*leaves), expected, rtol=1e-9, atol=1e-9)


def test_most_of_what_is_planned_is_emitted():
    """Otherwise the test above could not fail."""
    done = 0
    for seed in range(60):
        term, output = random_network(random.Random(seed))
        try:
            lower(term, output, next(trees(list(range(len(term.factors))))))
        except LoweringError:
            continue
        done += 1
    assert done >= 50


def test_two_symbolic_sizes_are_merged_and_split():
    b, c = Index("b", 7, "s0"), Index("c", 5, "s1")
    s, t, r = Index("s", 3), Index("t", 4), Index("r", 2)
    term = Term((Factor(0, axes(b, s, c)), Factor(1, axes(t, s)), Factor(2, axes(r, t))))
    module = lower(term, axes(b, c, r), ((0, 1), 2))
    for sizes in ((7, 5), (1, 2), (3, 1)):
        x, v, w = torch.randn(sizes[0], 3, sizes[1]), torch.randn(4, 3), torch.randn(2, 4)
        torch.testing.assert_close(module(x, v, w), torch.einsum("bsc,ts,rt->bcr", x, v, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["taps", "taps_conv"])
def test_positions_are_counted_from_the_end(way):
    i, o, k = Index("i", 6, "s0"), Index("o", 6, "s0"), Index("k", 3)
    s, t = Index("s", 3), Index("t", 4)
    term = Term((Factor(0, axes(s, i)), Factor(1, axes(t, s, k))), (Window(i, o, (Tap(k),), 1, 1),))
    module = lower(term, axes(t, o), (0, 1), ways={0b11: way})
    for size in (1, 2, 6, 11):
        x, w = torch.randn(1, 3, size), torch.randn(4, 3, 3)
        torch.testing.assert_close(module(x[0], w)[None], torch.conv1d(x, w, padding=1), rtol=1e-4, atol=1e-4)
