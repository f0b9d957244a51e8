"""How well the time model predicts, and the constants that come with the package.

`python -m benchmarks.calibrate_defaults --check [--threads 1 2]` calibrates (or takes the calibration that is stored),
draws fresh ops by another seed, three times as many, and prints how well the defaults, the calibration and the count of
FLOPs alone predict them, forward and with backward.

`python -m benchmarks.calibrate_defaults` measures many ops at all thread counts, fits one model to all of them, and
prints the two tables to paste into `ce_fx/plan/time_model.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence

import torch

from ce_fx.plan.ops import FAMILIES
from ce_fx.plan.time_model import Roofline, TimeModel
from ce_fx.tune import calibrate
from ce_fx.tune.fit import fitted, flops_alone, held_out, quality
from ce_fx.tune.instances import all_instances
from ce_fx.tune.microbench import Sample, disagreement, measure, merged

CPU = torch.device("cpu")
DIRECTIONS = (("forward", False), ("forward and backward", True))


def measured(device: torch.device, count: int, seed: int, budget: float) -> list[Sample]:
    """Fresh samples, `count` of each family, in two rounds of `budget` seconds for each sample."""
    start = time.perf_counter()
    drawn = all_instances(count, seed, device.type)
    rounds = [[measure(one, device, torch.float32, budget) for one in drawn] for _ in range(2)]
    spent = time.perf_counter() - start
    print(f"# {len(drawn)} ops in {spent:.0f} s, two rounds {disagreement(rounds):.2f}x apart")
    return merged(rounds)


def check(device: torch.device, seed: int, budget: float) -> None:
    """Defaults, calibration and FLOPs on ops that none of them has seen."""
    threads = torch.get_num_threads()
    model = calibrate.stored(device, torch.float32) or calibrate.calibrate(device)
    samples = measured(device, 3 * calibrate.COUNT, seed, budget)
    models = {"defaults": TimeModel.default(device), "calibrated" if model.calibrated else "NOT calibrated": model}
    for direction, backward in DIRECTIONS:
        print(f"{device}, {threads} threads, {direction}")
        for name, one in models.items():
            print(f"  {name:14s} {quality(samples, one, backward)}")
        print(f"  {'FLOPs alone':14s} {flops_alone(samples, backward)} (of the ops that have some)")
        families = {family: [s for s in samples if s.op.family == family] for family in FAMILIES}
        shown = (f"{family} {quality(mine, model, backward).factor:.2f}" for family, mine in families.items())
        print(f"  by family: {', '.join(shown)}")


def defaults(device: torch.device, thread_counts: Sequence[int], count: int, seed: int, budget: float) -> None:
    """The tables to paste."""
    prior = TimeModel.default(device)
    by_threads = {}
    for threads in thread_counts:
        torch.set_num_threads(threads)
        by_threads[threads] = measured(device, count, seed, budget)
    print_tables([s for samples in by_threads.values() for s in samples], by_threads, prior)


def print_tables(samples: Sequence[Sample], by_threads: Mapping[int, Sequence[Sample]], prior: TimeModel) -> None:
    """Fit one model to all samples and print it, with its quality at each thread count."""
    model = fitted(samples, prior)
    unseen = held_out(samples, prior)
    for direction, backward in DIRECTIONS:
        print(f"# {direction}; held out: {unseen[backward]}; as they were: {quality(samples, prior, backward)}")
        for threads, mine in by_threads.items():
            print(f"#   {threads} threads: {quality(mine, model, backward)}")
        table = model.both_rates if backward else model.forward_rates
        for family in FAMILIES:
            print(f'"{family}": {row(table[family])},')


def row(r: Roofline) -> str:
    """A row of the tables in `ce_fx.plan.time_model`, two digits of each number: the model has no more."""
    numbers = (r.t0 * 1e6, r.rate / 1e9, r.k0, r.n0, r.m0, r.bandwidth / 1e9, r.alone, r.each * 1e6, r.far / 1e9)
    return "(" + ", ".join(f"{float(f'{n:.2g}'):g}" for n in numbers) + ")"


def main() -> None:
    """Check or fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="how well the calibration predicts fresh ops")
    parser.add_argument("--device", type=torch.device, default=CPU)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--count", type=int, default=30, help="ops of a family, for the tables")
    parser.add_argument("--budget", type=float, default=0.03, help="seconds of a measurement")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not options.check:
        defaults(options.device, options.threads, options.count, options.seed, options.budget)
        return
    for threads in options.threads:
        torch.set_num_threads(threads)
        check(options.device, options.seed, options.budget)


if __name__ == "__main__":
    main()
