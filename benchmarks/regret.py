"""How far each way of choosing a plan is from the best one: `python -m benchmarks.regret [--only REGEX]`.

For each tensorly-torch convolution up to 16 distinct candidates (the planner's list: time-best, FLOPs-best, dense and
near ones; in other ways and formats; other trees, half of them at random) are lowered and measured, all interleaved,
forward and in training. The regret of a choice is its time over that of the fastest of all. The layer as written, the
hand-written orders, and what `ce_fx.optimize` makes of the layer, by prediction and with measuring, run along.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, inf, log
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.fx import GraphModule

import ce_fx
import ce_fx.plan.planner as planner
from benchmarks.cases import Case, chosen, convolutions
from benchmarks.harness import compare, machine
from benchmarks.table import own_cache
from ce_fx.algebra import Expression
from ce_fx.algebra.program import Program
from ce_fx.capture.reading import read
from ce_fx.lift.regions import find_regions
from ce_fx.lower.emit import LoweringError
from ce_fx.lower.sums import candidate
from ce_fx.plan.candidates import make_plans
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.plan import Plan, PlanError
from ce_fx.plan.sums import networks
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import Tree
from ce_fx.tune.calibrate import time_model
from ce_fx.tune.cost import cost_of

MOST = 16
TUNED: dict[str, bool | str] = {"ce_fx, predicted": False, "ce_fx, measured": "auto"}
FEW = 4
"""Operands up to which all trees are candidates."""
SAMPLE = 150
"""Random trees among which a few are drawn that are not hopeless."""
HOPELESS = 12.0
"""Times the best prediction: what is slower by that is not worth its memory and the waiting."""


@dataclass(frozen=True)
class Candidate:
    """One way to evaluate the layer.

    Attributes:
        label: where it is from.
        run: takes the leaves.
        predicted: seconds by the time model over the ops that are really emitted.
        flops: multiply-adds of one forward evaluation.
    """

    label: str
    run: Callable[..., Tensor]
    predicted: float
    flops: int


@dataclass(frozen=True)
class Problem:
    """The one region of a layer.

    Attributes:
        network: its product.
        leaves: real tensors for its operands.
        mode: "forward" or "train".
        model: prices ops.
    """

    network: Network
    leaves: tuple[Tensor, ...]
    mode: str
    model: TimeModel


@dataclass(frozen=True)
class Regrets:
    """Time over the fastest candidate's, by choice; and the seconds of the fastest."""

    case: str
    mode: str
    best: float
    label: str
    by_choice: dict[str, float]


def problem(case: Case, module: torch.nn.Module, mode: str, small: bool = False) -> Problem:
    """Lift a layer that is one region.

    Raises:
        ValueError: it is not one product.
    """
    x = case.input(small).requires_grad_(mode == "train")
    gm = ce_fx.capture(module, (x,))
    regions = [r for r in find_regions(gm.graph, read(gm, [x])).regions if len(r.expression.terms[0].factors) > 1]
    if len(regions) != 1 or len(regions[0].expression.terms) != 1:
        raise ValueError(f"{case.name} has {len(regions)} regions; regret is measured for layers that are one product")
    (region,) = regions
    leaves = tuple(x if leaf.op == "placeholder" else _attribute(gm, str(leaf.target)) for leaf in region.leaves)
    grads = mode == "train"
    operands = [Operand(constant=leaf is not x, needs_grad=grads) for leaf in leaves]
    (network,) = networks(region.expression, operands)
    return Problem(network, leaves, mode, time_model(x.device))


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def lowered(plan: Plan, label: str, of: Problem) -> tuple[str, Candidate]:
    """A plan as a module, and its code, by which equal ones are known.

    Raises:
        LoweringError: it cannot be emitted.
    """
    program = Program(len(of.leaves), (Expression(plan.network.output, (plan.network.term,)),))
    module = candidate(program, [plan], of.leaves)
    return module.code, Candidate(label, module, predicted(module, of), plan.flops)


def predicted(module: GraphModule, of: Problem) -> float:
    """Seconds by the time model, over the ops that a module really runs, copies included."""
    train = of.mode == "train"
    with torch.set_grad_enabled(train):
        reading = read(module, of.leaves)
    nodes = [node for group in reading.ops.values() for node in group]
    return cost_of(nodes, of.model, of.leaves[0].element_size(), train).seconds


def plan_along(tree: Tree, of: Problem) -> Plan:
    """The plan of a tree, its steps in the ways that the time model prefers."""
    path = planner.path_of_tree(tree, of.network.n)
    return planner.make_plan(
        of.network,
        objective="time",
        mode=of.mode,
        optimize=path,
        time_model=of.model,
    )


def candidates(of: Problem, most: int = MOST, seed: int = 0) -> list[Candidate]:
    """Distinct ones: the planner's list, its first two in usual ways and in channels_last, then other trees."""
    found: dict[str, Candidate] = {}
    best = inf
    for label, plan in _plans(of, seed):
        if len(found) == most:
            break
        if label == "tree" and plan.cost > HOPELESS * best:
            continue
        try:
            code, one = lowered(plan, label, of)
        except (LoweringError, PlanError):
            continue  # not every tree can be emitted; the planner's own ones are tested elsewhere
        best = min(best, plan.cost)
        found.setdefault(code, one)
    return list(found.values())


def _plans(of: Problem, seed: int) -> Iterator[tuple[str, Plan]]:
    mode: Any = of.mode
    listed = make_plans(of.network, mode=mode, time_model=of.model)
    for plan in listed:
        yield plan.method, plan
    for plan in listed[:2]:
        yield f"{plan.method}, usual ways", replace(plan, ways={})
        yield f"{plan.method}, channels_last", replace(plan, channels_last=True)
    rng = random.Random(seed)
    trees = list(_all_trees(list(range(of.network.n)))) if of.network.n <= FEW else _random_trees(of.network.n, rng)
    plans = sorted((plan_along(tree, of) for tree in trees), key=lambda plan: plan.cost)
    # Half by rank, half anywhere: the model may be wrong about either.
    close, rest = plans[: MOST // 2], plans[MOST // 2 :]
    rng.shuffle(rest)
    for pair in zip(close, [*rest, *close], strict=False):
        yield from (("tree", plan) for plan in pair)


def _all_trees(items: Sequence[Tree]) -> Iterator[Tree]:
    """Every binary tree over items; the first item stays in the left half, so none comes twice."""
    if len(items) == 1:
        yield items[0]
        return
    first, *others = items
    for mask in range(2 ** len(others) - 1):
        left = [first, *(item for n, item in enumerate(others) if mask >> n & 1)]
        right = [item for n, item in enumerate(others) if not mask >> n & 1]
        for one in _all_trees(left):
            for two in _all_trees(right):
                yield (one, two)


def _random_trees(n: int, rng: random.Random) -> list[Tree]:
    trees = []
    for _ in range(SAMPLE):
        parts: list[Tree] = list(range(n))
        while len(parts) > 1:
            left = parts.pop(rng.randrange(len(parts)))
            right = parts.pop(rng.randrange(len(parts)))
            parts.append((left, right))
        trees.append(parts[0])
    return trees


def check(found: Sequence[Candidate], module: torch.nn.Module, of: Problem, x: Tensor) -> None:
    """Every candidate gives what the layer gives.

    Raises:
        AssertionError: one does not; it is named.
    """
    with torch.no_grad():
        expected = module(x)
        for one in found:
            error = float((one.run(*of.leaves) - expected).abs().max() / expected.abs().max())
            if error > 1e-3:
                raise AssertionError(f"candidate {one.label} is off by {error:.1e} of the largest output")


def regrets(case: Case, mode: str, rounds: int = 7, budget: float = 0.02, small: bool = False) -> Regrets:
    """Measure all candidates of a layer, and the regret of each way to choose among them."""
    module = case.module().train(mode == "train")
    of = problem(case, module, mode, small)
    x = next(leaf for leaf in of.leaves if not isinstance(leaf, torch.nn.Parameter))
    found = candidates(of)
    check(found, module, of, x)
    runs: dict[str, Callable[[], Tensor]] = {"written": partial(module, x)}
    runs |= {f"hand: {name}": partial(bind(module), x) for name, bind in case.orders.items()}
    runs |= {str(n): partial(one.run, *of.leaves) for n, one in enumerate(found)}
    torch._dynamo.reset()
    with torch.set_grad_enabled(mode == "train"):
        for name, tune in TUNED.items():
            runs[name] = partial(ce_fx.optimize(module, (x,), tune=tune), x)
        steps = {name: _step(run, [x, *module.parameters()], mode) for name, run in runs.items()}
        measured = compare(steps, rounds, budget).seconds
    return evaluate(case.name, mode, found, measured)


def evaluate(case: str, mode: str, found: Sequence[Candidate], measured: dict[str, float]) -> Regrets:
    """Regrets from measured seconds.

    Args:
        case: the layer's name.
        mode: "forward" or "train".
        found: the candidates.
        measured: seconds of "written", of each "hand: <name>", of `TUNED`, and of each candidate by its number.
    """
    ranked = sorted(range(len(found)), key=lambda n: found[n].predicted)
    seconds = [measured[str(n)] for n in range(len(found))]
    fastest = min(range(len(found)), key=seconds.__getitem__)
    best = min(seconds[fastest], measured["written"], *(measured[name] for name in TUNED))
    times = {
        "written": measured["written"],
        "flops": seconds[min(range(len(found)), key=lambda n: found[n].flops)],
        "by hand": min((s for name, s in measured.items() if name.startswith("hand: ")), default=inf),
        "model": seconds[ranked[0]],
        "top 3": min(seconds[n] for n in ranked[:3]),
        "top 5": min(seconds[n] for n in ranked[:5]),
        "top 3 + written": min(measured["written"], *(seconds[n] for n in ranked[:3])),
        **{name: measured[name] for name in TUNED},
    }
    label = f"{found[fastest].label}, rank {ranked.index(fastest) + 1} of {len(found)}"
    return Regrets(case, mode, best, label, {name: value / best for name, value in times.items()})


def _step(run: Callable[[], Tensor], inputs: Sequence[Tensor], mode: str) -> Callable[[], object]:
    if mode == "forward":
        return run
    seed = torch.randn_like(run())
    return lambda: torch.autograd.grad(run(), inputs, seed)


def table(rows: Sequence[Regrets]) -> str:
    """All layers, then the geometric mean and the maximum by mode."""
    choices = list(rows[0].by_choice)
    lines = [
        [r.case, r.mode, f"{r.best * 1e3:.3g}", *(f"{r.by_choice[c]:.2f}" for c in choices), r.label] for r in rows
    ]
    for mode in dict.fromkeys(row.mode for row in rows):
        values = {c: [r.by_choice[c] for r in rows if r.mode == mode] for c in choices}
        mean = {c: exp(sum(map(log, v)) / len(v)) for c, v in values.items()}
        lines.append(["geo-mean", mode, "", *(f"{mean[c]:.2f}" for c in choices), ""])
        lines.append(["max", mode, "", *(f"{max(values[c]):.2f}" for c in choices), ""])
    return tabulate(lines, headers=["layer", "mode", "best ms", *choices, "the best"], tablefmt="plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="REGEX", default="factorized", help="of the convolutions' names")
    parser.add_argument("--rank", type=float, nargs="+", default=[0.25])
    parser.add_argument("--mode", choices=["forward", "train", "both"], default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shipped", action="store_true", help="rank by the constants that come with the package")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    modes = ("forward", "train") if args.mode == "both" else (args.mode,)
    rows = []
    with own_cache():
        calibrated = time_model("cpu", measure=not args.shipped).calibrated
        for case in chosen(convolutions(args.rank), args.only):
            for mode in modes:
                rows.append(regrets(case, mode, args.rounds))
                print(f"{case.name} {mode}: model {rows[-1].by_choice['model']:.2f}", file=sys.stderr, flush=True)
    print(f"{machine()}, time model {'calibrated' if calibrated else 'as shipped'}\n{table(rows)}")


if __name__ == "__main__":
    main()
