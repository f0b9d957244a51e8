"""Planning time by number of operands: `python -m benchmarks.plan_time [--most 12]`.

Families: tensor-train and tensor-ring layers (rank 8, modes 4, batch 64), CP layers (all factors on one index), chains
and rings of matrices, and CP convolutions with several kernels on each of two axes. Milliseconds of one plan, the best
of three, everything computed anew. The last lines are whole rewrites of sums of products by predicted time: reading,
planning, lowering and pricing, in seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

import ce_fx
from ce_fx.algebra.parser import parse
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.planner import make_plan

QUESTIONS: dict[str, dict[str, str]] = {
    "flops": {},
    "train": {"mode": "train"},
    "memory": {"objective": "memory"},
    "time": {"objective": "time"},
    "time, train": {"objective": "time", "mode": "train"},
    "greedy": {"optimize": "greedy"},
}


def network(terms: list[str], output: str, sizes: dict[str, int], pipe: str = "") -> Network:
    """A network from terms whose letters are separated by spaces; a size is found by the letter's first character."""
    string = ",".join("".join(f"({x})" for x in term.split()) for term in terms)
    string += "->" + "".join(f"({x})" for x in output.split())
    string += "|" + "".join(f"({x})" for x in pipe.split()) if pipe else ""
    shapes = [[sizes["k"] if x in pipe.split() and n else sizes[x[0]] for x in t.split()] for n, t in enumerate(terms)]
    parsed = parse(string, shapes)
    operands = [Operand()] + [Operand(constant=True, needs_grad=True)] * (len(terms) - 1)
    return Network(parsed.term, parsed.output, operands)


def train(n: int, ring: bool = False) -> Network:
    """A tensor-train (or tensor-ring) layer: x and n - 1 cores."""
    modes = n - 1
    names = [f"i{m} o{m}" for m in range(modes)]
    cores = [f"r{m} r{(m + 1) % modes} {name}" for m, name in enumerate(names)]
    if not ring:
        cores[0], cores[-1] = f"r1 {names[0]}", f"r{modes - 1} {names[-1]}"
    x = "b " + " ".join(f"i{m}" for m in range(modes))
    output = "b " + " ".join(f"o{m}" for m in range(modes))
    return network([x, *cores], output, {"b": 64, "i": 4, "o": 4, "r": 8})


def cp(n: int) -> Network:
    """A CP layer: x and factors that all share the rank."""
    inputs = [f"i{m}" for m in range((n - 1) // 2)]
    outputs = [f"o{m}" for m in range(n - 1 - len(inputs))]
    factors = [f"{name} r" for name in inputs + outputs]
    return network(["b " + " ".join(inputs), *factors], "b " + " ".join(outputs), {"b": 64, "i": 4, "o": 4, "r": 8})


def chain(n: int, ring: bool = False) -> Network:
    """A chain (or ring) of matrices of different sizes."""
    sizes = {letter: 2 + 7 * k % 31 for k, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    letters = [chr(ord("a") + k) for k in range(n + 1)]
    if ring:
        letters[n] = letters[0]
    terms = [f"{letters[k]} {letters[k + 1]}" for k in range(n)]
    return network(terms, "" if ring else f"{letters[0]} {letters[n]}", sizes)


def conv(n: int) -> Network:
    """A CP convolution: x, two channel factors, and kernels on h and w in turn."""
    kernels = [f"r {'hw'[k % 2]}" for k in range(n - 3)]
    sizes = {"b": 8, "s": 64, "t": 64, "r": 16, "h": 56, "w": 56, "k": 3}
    return network(["b s h w", "r t", "r s", *kernels], "b t h w", sizes, "h w")


FAMILIES: dict[str, Callable[[int], Network]] = {
    "train": train,
    "ring of cores": lambda n: train(n, ring=True),
    "cp": cp,
    "chain": chain,
    "ring": lambda n: chain(n, ring=True),
    "conv": conv,
}


def milliseconds(build: Callable[[int], Network], n: int, **options: str) -> tuple[float, str]:
    """The best of three plans of fresh networks, and the method that vouches for the last."""
    best, method = float("inf"), ""
    for _ in range(3):
        net = build(n)
        start = time.perf_counter()
        method = make_plan(net, **options).method
        best = min(best, time.perf_counter() - start)
    return best * 1e3, method


class Sum(nn.Module):
    """A sum of chains of products of one input."""

    def __init__(self, products: int, operands: int) -> None:
        super().__init__()
        sizes = torch.Generator().manual_seed(0)
        self.chains = nn.ModuleList()
        for _ in range(products):
            widths = [64, *torch.randint(2, 60, (operands - 2,), generator=sizes).tolist(), 48]
            self.chains.append(nn.ParameterList(torch.randn(pair) for pair in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        """All chains, added up."""
        return sum(reduce(torch.matmul, chain, x) for chain in self.chains)


def seconds(products: int, operands: int, training: bool) -> float:
    """Of the rewrite of a sum."""
    model = Sum(products, operands).requires_grad_(training)
    start = time.perf_counter()
    ce_fx.rewrite(torch.fx.symbolic_trace(model), [torch.randn(256, 64)], tune=False)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=12, help="largest number of operands (up to 20)")
    most = parser.parse_args().most
    print(f"{'family':<14}{'n':>3}  " + "".join(f"{name:>13}" for name in QUESTIONS) + "  method (flops)")
    for family, build in FAMILIES.items():
        for n in [n for n in (6, 8, 10, 12, 14, 16, 20) if n <= most]:
            answers = [milliseconds(build, n, **options) for options in QUESTIONS.values()]
            print(f"{family:<14}{n:>3}  " + "".join(f"{ms:>13.1f}" for ms, _ in answers) + f"  {answers[0][1]}")
    seconds(2, 3, False)  # what a first call alone pays
    for products, operands in ((4, 4), (16, 4), (16, 8)):
        both = [seconds(products, operands, training) for training in (False, True)]
        print(f"{products} products of {operands} operands: {both[0]:.2f} s, to be trained {both[1]:.2f} s")


if __name__ == "__main__":
    main()
