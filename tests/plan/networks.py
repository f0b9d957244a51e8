"""Random networks for the planner, as a Network and as a brute-force Problem."""

import random

from ce_fx.algebra import Factor, Index, Tap, Term, Window
from ce_fx.plan.network import Network, Operand
from tests.plan.brute_force import Axis, Problem


def random_network(seed, most=6, axes=2):
    """(network, problem, operands that need a gradient)."""
    rng = random.Random(seed)
    n = rng.randint(3, most)
    names = [f"x{i}" for i in range(rng.randint(2, n + 2))]
    sizes = {name: rng.randint(2, 6) for name in names}
    terms = [set(rng.sample(names, rng.randint(1, min(3, len(names))))) for _ in range(n)]
    used = set().union(*terms)
    output = frozenset(x for x in used if rng.random() < 0.4)
    conv, windows = [], []
    letters: list[dict[int, Index]] = [{} for _ in range(n)]
    for a in range(rng.randint(0, axes)):
        holders = rng.sample(range(n), rng.randint(2, min(5, n)))
        features, kernels = holders[0], holders[1:]
        shape = {k: (rng.choice([1, 2, 3, 5]), rng.randint(1, 3)) for k in kernels}
        reach = sum(d * (k - 1) for k, d in shape.values())
        pad = rng.randint(0, reach + 1)
        right = rng.randint(0, reach + 1)
        size = max(1, reach + 1 - pad - right) + rng.randint(0, 8)
        stride = rng.randint(1, 3)
        out = (size + pad + right - reach - 1) // stride + 1
        conv.append(Axis(features, size, shape, stride, pad, out))
        index = Index(f"f{a}", size)
        letters[features][a] = index
        taps = []
        for k, (width, dilation) in shape.items():
            letters[k][a] = Index(f"k{a}.{k}", width)
            taps.append(Tap(letters[k][a], dilation))
        windows.append(Window(index, Index(f"o{a}", out), tuple(taps), stride, pad))
    factors = tuple(
        Factor(i, tuple((Index(x, sizes[x]),) for x in sorted(term)) + tuple((index,) for index in letters[i].values()))
        for i, term in enumerate(terms)
    )
    axes_out = tuple((Index(x, sizes[x]),) for x in sorted(output)) + tuple((w.out,) for w in windows)
    grads = frozenset(i for i in range(n) if rng.random() < 0.6)
    operands = [Operand(constant=i > 0, needs_grad=i in grads) for i in range(n)]
    network = Network(Term(factors, tuple(windows)), axes_out, operands)
    return network, Problem(tuple(map(frozenset, terms)), sizes, output, tuple(conv)), grads


def chain(n, sizes=None, ring=False):
    """A chain (or ring) of matrices, the open ends in the output."""
    sizes = sizes or [2 + (7 * i) % 5 for i in range(n + 1)]
    index = [Index(f"i{k}", sizes[k]) for k in range(n + 1)]
    if ring:
        index[n] = index[0]
    factors = tuple(Factor(k, ((index[k],), (index[k + 1],))) for k in range(n))
    output = () if ring else ((index[0],), (index[n],))
    return Network(Term(factors), output)


def train(modes, rank=8, size=4):
    """A tensor-train linear layer: x[b, i1..im] and m cores."""
    b = Index("b", 64)
    i = [Index(f"i{k}", size) for k in range(modes)]
    o = [Index(f"o{k}", size) for k in range(modes)]
    r = [Index(f"r{k}", rank) for k in range(modes + 1)]
    factors = [Factor(0, ((b,), *((x,) for x in i)))]
    for k in range(modes):
        ends = ([r[k]] if k else []) + ([r[k + 1]] if k + 1 < modes else [])
        factors.append(Factor(k + 1, tuple((x,) for x in (*ends, i[k], o[k]))))
    return Network(Term(tuple(factors)), ((b,), *((x,) for x in o)))


def cp(modes, rank=16, size=4):
    """A CP linear layer: one hyper-index on all factors."""
    b, r = Index("b", 64), Index("r", rank)
    i = [Index(f"i{k}", size) for k in range(modes)]
    factors = [Factor(0, ((b,), *((x,) for x in i)))] + [Factor(k + 1, ((r,), (i[k],))) for k in range(modes)]
    return Network(Term(tuple(factors)), ((b,), (r,)))
