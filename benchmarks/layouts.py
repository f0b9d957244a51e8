"""How much the lowering of one order matters, and whether the best is found: `python -m benchmarks.layouts --help`.

For the orders of tensorly-torch convolutions, every combination of the ways of their heavy steps and of the memory
format of images (at most `--most`, drawn at random where there are more) is measured in turn. `spread` is the slowest
over the fastest of those that were run to the end or dropped, `chosen` what ce_fx settles on for that order (by the
clock, from a few of them), and `usual` every step in the way of its kind, both over the fastest of all.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import exp, log

import torch
from tabulate import tabulate
from torch import Tensor

import ce_fx
from benchmarks.cases import convolutions
from benchmarks.harness import machine
from benchmarks.table import own_cache
from ce_fx.capture.reading import read
from ce_fx.decide import Context, problem_of
from ce_fx.lift.regions import find_regions
from ce_fx.lower.emit import LoweringError, has_images
from ce_fx.options import Options
from ce_fx.rewrite import weight_only
from ce_fx.tune.calibrate import time_model
from ce_fx.tune.candidates import Candidate, Lowered, candidates, to_be_timed
from ce_fx.tune.choice import other_ways, with_better_ways
from ce_fx.tune.clock import plain_mode
from ce_fx.tune.problem import Problem
from ce_fx.tune.race import race
from ce_fx.tune.runs import random_leaves, run_of

BUDGET = 1.0
"""Seconds of one race."""


def problem(module: torch.nn.Module, x: torch.Tensor, train: bool) -> Problem:
    """A layer that is one region, as ce_fx sees it."""
    gm = ce_fx.capture(module, (x,))
    with torch.set_grad_enabled(train):
        reading = read(gm, [x])
        (region,) = (r for r in find_regions(gm.graph, reading).regions if len(r.expression.terms[0].factors) > 1)
        context = Context(
            gm=gm,
            options=Options.of({}),
            fakes=dict(reading.fakes),
            constant=weight_only(gm, [x], reading),
            model=lambda device, dtype, calibrate: time_model(device, dtype, measure=calibrate),
            training=train,
            ops=reading.ops,
        )
        return problem_of(region, context, calibrate=True)


def lowerings(
    of: Problem, one: Candidate, leaves: Sequence[Tensor], most: int, rng: random.Random
) -> Iterator[Lowered]:
    """The order of a candidate in every combination of the ways of its heavy steps and of memory formats."""
    (plan,) = one.plans
    ways: dict[int, list[str]] = {}
    for subset, way, _ in other_ways(of, replace(plan, ways={})):
        ways.setdefault(subset, [""]).append(way)
    formats = [False, True] if has_images(plan.network) else [False]
    every = list(product(formats, *ways.values()))
    for last, *chosen in every if len(every) <= most else [every[0], *rng.sample(every[1:], most - 1)]:
        given = {subset: way for subset, way in zip(ways, chosen, strict=True) if way}
        try:
            yield to_be_timed(of, one.program, [replace(plan, ways=given, channels_last=last)], leaves)
        except LoweringError:
            continue


def measured(of: Problem, one: Candidate, most: int) -> dict[str, float]:
    """Seconds: the fastest and the slowest of all, the usual one, and the one that ce_fx settles on."""
    device = of.leaves[0].device
    with plain_mode(device), torch.set_grad_enabled(of.training):
        leaves = random_leaves(of)
        every = list(lowerings(of, one, leaves, most, random.Random(0)))
        settled = with_better_ways(of, one, leaves)
        runs = [run_of(each.module.forward, leaves) for each in (settled, every[0], *every)]
        first = race(runs, device, BUDGET)
        best = min(range(len(runs)), key=first.seconds.__getitem__)
        last = race([runs[0], runs[1], runs[best]], device, BUDGET)
    fastest = min(last.seconds)
    return {
        "count": len(every),
        "best ms": fastest * 1e3,
        "spread": max(first.seconds) / min(first.seconds),
        "usual": last.seconds[1] / fastest,
        "chosen": last.seconds[0] / fastest,
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="factorized", metavar="REGEX", help="the layers whose name it finds")
    parser.add_argument("--orders", type=int, default=3, help="of each layer, the best by the time model")
    parser.add_argument("--most", type=int, default=48, help="lowerings of an order")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mode", default="forward", choices=["forward", "train"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    print(machine())
    with own_cache():
        for case in convolutions([0.25]):
            if not re.search(given.only, case.name):
                continue
            of = problem(case.module(), case.input().requires_grad_(given.mode == "train"), given.mode == "train")
            for one in candidates(of)[: given.orders]:
                tree = str(one.plans[0].tree)
                rows.append({"layer": case.name, "order": tree, **measured(of, one, given.most)})
                print(f"[{len(rows)}] {case.name} {tree}: {rows[-1]['chosen']:.2f}", flush=True)
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    for name in ("usual", "chosen"):
        values = [row[name] for row in rows]
        mean = exp(sum(map(log, values)) / len(values))
        near = sum(value <= 1.1 for value in values)
        worst = f"{max(values):.2f}x at worst, {near} of {len(values)} within 1.1x"
        print(f"{name}: {mean:.3f}x the fastest on average, {worst}")


if __name__ == "__main__":
    main()
