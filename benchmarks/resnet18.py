"""tensorly-torch ResNet-18 as written against optimised: python -m benchmarks.resnet18 --help."""

from __future__ import annotations

import argparse
import copy
import time

import torch

import ce_fx
from benchmarks.harness import compare, machine
from tests.models import factorized_resnet18, plain_resnet18


def build(factorization: str, rank: float, implementation: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if factorization == "plain":
        return plain_resnet18()
    return factorized_resnet18(factorization, rank, implementation)


def largest_difference(model: torch.nn.Module, x: torch.Tensor, objective: str) -> float:
    """In float64, relative to the largest output, on a smaller input."""
    double = copy.deepcopy(model).double().eval()
    x = x[:2, :, :64, :64].double()
    fast = ce_fx.optimize(double, objective=objective)
    with torch.no_grad():
        expected = double(x)
        return float((fast(x) - expected).abs().max() / expected.abs().max())


def train_step(model: torch.nn.Module, x: torch.Tensor):
    """Forward, backward and an SGD update that leaves the weights where they are."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> None:
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()

    return step


def run(arguments: argparse.Namespace, factorization: str, implementation: str) -> None:
    model = build(factorization, arguments.rank, implementation).eval()
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    print(f"\n{factorization} {implementation}, rank {arguments.rank}, {tuple(x.shape)}, {arguments.objective}")
    difference = largest_difference(model, x, arguments.objective)
    print(f"  largest difference in float64   {difference:.1e} of the largest output")
    with torch.no_grad():
        start = time.perf_counter()
        fast = ce_fx.optimize(model, (x,), objective=arguments.objective)
        print(f"  first call                      {time.perf_counter() - start:.1f} s")
        forward = compare({"written": lambda: model(x), "ce_fx": lambda: fast(x)}, arguments.rounds)
    report = ce_fx.report(fast)
    convs = [layer for layer in report.layers if layer.kind == "FactorizedConv"]
    before, after = (sum(getattr(layer, f"flops_{when}") for layer in convs) for when in ("before", "after"))
    print(f"  graphs, regions rewritten       {len(ce_fx.graph_modules(fast))}, {report.count('rewritten')}")
    print(f"  GFLOP of the 3x3 convolutions   {before / 1e9:.2f} -> {after / 1e9:.2f}")
    print(f"  forward ms, ratio               {_line(forward)}")
    model.train()
    fast.train()
    train = compare({"written": train_step(model, x), "ce_fx": train_step(fast, x)}, arguments.rounds)
    print(f"  train step ms, ratio            {_line(train)}")
    print(f"  {repr(fast).splitlines()[-1]}")


def _line(timing) -> str:
    a, b = timing.seconds["written"], timing.seconds["ce_fx"]
    return f"{a * 1e3:.1f} -> {b * 1e3:.1f}, {timing.ratio['ce_fx']:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factorization", default="tt", choices=["tt", "cp", "tucker", "plain"])
    parser.add_argument("--implementation", default="factorized", choices=["factorized", "reconstructed"])
    parser.add_argument("--all", action="store_true", help="every factorization and implementation")
    parser.add_argument("--rank", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--objective", default="time", choices=["time", "flops", "memory"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    if not arguments.all:
        run(arguments, arguments.factorization, arguments.implementation)
        return
    for factorization in ("tt", "cp", "tucker"):
        for implementation in ("factorized", "reconstructed"):
            run(arguments, factorization, implementation)


if __name__ == "__main__":
    main()
