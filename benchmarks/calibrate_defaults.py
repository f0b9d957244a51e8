"""Fits the default constants of the time model: `python -m benchmarks.calibrate_defaults [--threads 1 2]`.

Microbenchmarks of every family, stratified by work, forward and forward with backward; then for each family and
direction the six constants of `Roofline` by coordinate descent on the log of predicted over measured. Prints how well
held-out instances are predicted, and the two tables to paste into `ce_fx/plan/time_model.py`. Constants are fitted to
the measurements of all thread counts together.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ce_fx.plan.kinds import conv_family
from ce_fx.plan.ops import FAMILIES, Op
from ce_fx.plan.time_model import DEFAULTS, Roofline

Compute = Callable[..., Tensor]


@dataclass(frozen=True)
class Instance:
    """One microbenchmark.

    Attributes:
        op: what the model sees.
        compute: the tensor op.
        shapes: of its operands.
    """

    op: Op
    compute: Compute
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Sample:
    """What was measured: an op, and its seconds."""

    op: Op
    seconds: float


CHANNELS = (3, 4, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
SIDES = (5, 7, 10, 14, 20, 28, 40, 56, 80, 112)
BATCHES = (1, 2, 4, 8, 16)
KERNELS = ((3, 3), (3, 1), (1, 3), (5, 5), (2, 2), (7, 1))
ROWS = (1, 4, 9, 16, 49, 64, 196, 256, 784, 1024, 3136, 8192)

# Multiply-adds (elements where there are none) from the smallest to the largest instance: a few us to some 20 ms.
WORK: dict[str, tuple[float, float]] = {
    "mm": (1e3, 5e8),
    "bmm": (1e4, 2e8),
    "conv1x1": (1e4, 4e8),
    "conv": (1e4, 4e8),
    "conv_few": (1e4, 4e7),
    "depthwise": (3e3, 1e7),
    "grouped": (1e4, 2e8),
    "grouped_thin": (3e3, 2e7),
    "mul": (1e2, 5e6),
    "sum": (1e3, 1e7),
    "copy": (1e3, 5e6),
    "add": (1e2, 5e6),
}


def _matmul(rng: random.Random) -> Instance:
    m, k, n = rng.choice(ROWS), rng.choice((2, *CHANNELS)), rng.choice((1, 2, *CHANNELS))
    op = Op("mm", m * k * n, k, n, m, m * k + k * n + m * n)
    if rng.random() < 0.5:
        return Instance(op, torch.mm, ((m, k), (k, n)))
    return Instance(op, lambda x, w: torch.mm(x, w.t()), ((m, k), (n, k)))


def _batched(rng: random.Random) -> Instance:
    g, m = rng.choice((2, 4, 8, 16, 32, 64)), rng.choice(ROWS)
    k, n = rng.choice((2, *CHANNELS[:11])), rng.choice((1, 2, *CHANNELS[:11]))
    b = rng.choice(BATCHES)
    op = Op("bmm", g * b * m * k * n, k, n, b * m, g * (b * m * k + k * n + b * m * n))
    if b == 1:
        return Instance(op, torch.bmm, ((g, m, k), (g, k, n)))
    return Instance(op, lambda x, w: torch.matmul(w, x), ((b, g, k, m), (g, n, k)))


def _convolution(rng: random.Random, channels: int, columns: int, groups: int, kernel: tuple[int, int]) -> Instance:
    b, side = rng.choice(BATCHES), rng.choice(SIDES)
    stride = 2 if rng.random() < 0.2 and side > 10 else 1
    pad = (kernel[0] // 2, kernel[1] // 2)
    out = [(side + 2 * p - k) // stride + 1 for p, k in zip(pad, kernel, strict=True)]
    window, rows = math.prod(kernel), math.prod(out)
    x, w = (b, groups * channels, side, side), (groups * columns, channels, *kernel)
    results = b * groups * columns * rows
    family = conv_family(channels, columns, groups, window)
    elements = math.prod(x) + math.prod(w) + results
    op = Op(family, results * channels * window, channels * window, columns, rows, elements)
    return Instance(op, lambda x, w: torch.conv2d(x, w, stride=stride, padding=pad, groups=groups), (x, w))


def _merge(rng: random.Random, channels: int, columns: int, groups: int) -> Instance:
    """Two kernels become one, as in `ce_fx.lower.convolve.merge`."""
    b = rng.choice(CHANNELS)
    x, w = (b, groups * channels, 3, 1), (groups * channels, columns, 1, 3)
    results = b * groups * columns * 9
    elements = math.prod(x) + math.prod(w) + results
    op = Op(conv_family(channels, columns, groups, 3), results * channels, channels * 3, columns, 9, elements)
    return Instance(op, lambda x, w: torch.conv_transpose2d(x, w, groups=groups), (x, w))


def _conv(rng: random.Random) -> Instance:
    return _convolution(rng, rng.choice(CHANNELS), rng.choice(CHANNELS), 1, rng.choice(KERNELS))


def _conv_pixels(rng: random.Random) -> Instance:
    return _convolution(rng, rng.choice(CHANNELS), rng.choice(CHANNELS), 1, (1, 1))


def _conv_few(rng: random.Random) -> Instance:
    pair = [rng.choice((1, 2)), rng.choice((1, 2, *CHANNELS))]
    rng.shuffle(pair)
    return _convolution(rng, pair[0], pair[1], 1, rng.choice((*KERNELS, (1, 1))))


def _depthwise(rng: random.Random) -> Instance:
    groups = rng.choice(CHANNELS)
    return _merge(rng, 1, 1, groups) if rng.random() < 0.15 else _convolution(rng, 1, 1, groups, rng.choice(KERNELS))


def _grouped(rng: random.Random) -> Instance:
    groups, channels, columns = rng.choice((2, 4, 8, 16, 32)), rng.choice(CHANNELS[:9]), rng.choice((1, *CHANNELS[:9]))
    if rng.random() < 0.15:
        return _merge(rng, channels, columns, groups)
    return _convolution(rng, channels, columns, groups, rng.choice(KERNELS))


def _grouped_thin(rng: random.Random) -> Instance:
    groups, channels, columns = rng.choice(CHANNELS), rng.choice((1, 2)), rng.choice((1, 2, 3, 4, 8, 16))
    columns = max(columns, 3 - channels)  # one by one is depthwise
    if rng.random() < 0.15:
        return _merge(rng, channels, columns, groups)
    return _convolution(rng, channels, columns, groups, rng.choice(KERNELS))


def _multiply(rng: random.Random) -> Instance:
    b, r, h, w = rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice((1, *SIDES))
    x, y = rng.choice((((b, r, h, 1), (r, 1, w)), ((b, r, h, w), (r, 1, 1)), ((b, r, h, w), (b, r, h, w))))
    results = b * r * h * w
    return Instance(Op("mul", results, 1, 1, results, math.prod(x) + math.prod(y) + results), torch.mul, (x, y))


def _addition(rng: random.Random) -> Instance:
    shape = (rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice((1, *SIDES)))
    results = math.prod(shape)
    return Instance(Op("add", 0, 1, 1, results, 3 * results), torch.add, (shape, shape))


def _summation(rng: random.Random) -> Instance:
    shape = (rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice(SIDES))
    dim = rng.randrange(4)
    results = math.prod(shape) // shape[dim]
    return Instance(Op("sum", 0, 1, 1, results, math.prod(shape) + results), lambda x: x.sum(dim), (shape,))


def _transposition(rng: random.Random) -> Instance:
    shape = (rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice(SIDES))
    results = math.prod(shape)
    order = rng.choice(((0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0), (0, 1, 3, 2)))
    return Instance(
        Op("copy", 0, 1, 1, results, 2 * results),
        lambda x: x.permute(order).clone(memory_format=torch.contiguous_format),
        (shape,),
    )


_NO_MACS = ("sum", "copy", "add")
_TIMING = 1e-4  # seconds of one timing of a small op: shorter than a slice of the scheduler

DRAW: dict[str, Callable[[random.Random], Instance]] = {
    "mm": _matmul,
    "bmm": _batched,
    "conv1x1": _conv_pixels,
    "conv": _conv,
    "conv_few": _conv_few,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "grouped_thin": _grouped_thin,
    "mul": _multiply,
    "sum": _summation,
    "copy": _transposition,
    "add": _addition,
}


def instances(family: str, count: int, seed: int = 0) -> list[Instance]:
    """Random instances of a family, one from each of `count` equal steps of the log of the work."""
    rng = random.Random(f"{seed} {family}")
    low, high = WORK[family]
    found = []
    for stratum in range(count):
        least, most = (low * (high / low) ** ((stratum + side) / count) for side in (0, 1))
        while True:
            one = DRAW[family](rng)
            if one.op.family == family and least <= (one.op.macs or one.op.elements) < most:
                found.append(one)
                break
    return found


def measure(one: Instance, backward: bool, budget: float) -> float:
    """Seconds of one run: the second least of many short timings, since other load only adds."""
    operands = [torch.randn(shape, requires_grad=backward) for shape in one.shapes]
    if backward:
        ahead = one.compute(*operands)
        grad = torch.randn_like(ahead)

        def run() -> object:
            return torch.autograd.grad(one.compute(*operands), operands, grad)
    else:

        def run() -> object:
            return one.compute(*operands)

    with torch.set_grad_enabled(backward):
        run()
        start = time.perf_counter()
        run()
        single = time.perf_counter() - start
        repeats = max(1, round(_TIMING / max(single, 1e-7)))
        timings: list[float] = []
        end = start + budget
        while len(timings) < 4 or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            timings.append((time.perf_counter() - start) / repeats)
    return sorted(timings)[1]


def fit(samples: Sequence[Sample], prior: Roofline) -> Roofline:
    """Six constants by coordinate descent on log error, drawn weakly to the prior's."""
    macs, reduce, columns, rows, data, seconds = (
        np.array(column, dtype=float)
        for column in zip(
            *((s.op.macs, s.op.reduce, s.op.columns, s.op.rows, 4 * s.op.elements, s.seconds) for s in samples),
            strict=True,
        )
    )
    start = np.array([prior.t0, prior.rate, prior.k0 or 0.1, prior.n0 or 0.1, prior.m0 or 0.1, prior.bandwidth])
    low, high = start / 16, start * 16

    def loss(p: np.ndarray) -> float:
        thin = (1 + p[2] / reduce) * (1 + p[3] / columns) * (1 + p[4] / rows)
        error = np.log((p[0] + macs * thin / p[1] + data / p[5]) / seconds)
        robust = np.sqrt(1 + error**2) - 1  # soft L1: one odd instance does not bend the fit
        return float(robust.mean() + 0.006 * (np.log(p / start) ** 2).mean())

    best, least = start, loss(start)
    factor = 2.0
    while factor > 1.02:
        gained = False
        for n in range(6):
            for change in (factor, 1 / factor):
                trial = best.copy()
                trial[n] = min(max(trial[n] * change, low[n]), high[n])
                cost = loss(trial)
                if cost < least - 1e-9:
                    best, least, gained = trial, cost, True
        if not gained:
            factor = math.sqrt(factor)
    return Roofline(*map(float, best))


def fitted(samples: Sequence[Sample], priors: dict[str, Roofline]) -> dict[str, Roofline]:
    """The constants of every family."""
    return {family: fit([s for s in samples if s.op.family == family], priors[family]) for family in FAMILIES}


def quality(samples: Sequence[Sample], table: dict[str, Roofline]) -> tuple[float, float]:
    """Spearman's rank correlation of predicted and measured, and the typical factor `exp(mean |log error|)`."""
    predicted = np.array([table[s.op.family].seconds(s.op) for s in samples])
    measured = np.array([s.seconds for s in samples])
    ranks = np.array([values.argsort().argsort() for values in (predicted, measured)])
    return float(np.corrcoef(ranks)[0, 1]), float(np.exp(np.abs(np.log(predicted / measured)).mean()))


def held_out(samples: Sequence[Sample], priors: dict[str, Roofline], splits: int = 5) -> tuple[float, float]:
    """Quality on every third instance of each family, mean of several splits; an instance is on one side whole."""
    results = []
    for seed in range(splits):
        rng = random.Random(seed)
        ops = list(dict.fromkeys(s.op for s in samples))
        left_out = set()
        for family in FAMILIES:
            mine = [op for op in ops if op.family == family]
            left_out |= set(rng.sample(mine, max(1, round(0.3 * len(mine)))))
        table = fitted([s for s in samples if s.op not in left_out], priors)
        results.append(quality([s for s in samples if s.op in left_out], table))
    return sum(r for r, _ in results) / splits, sum(f for _, f in results) / splits


def rounded(value: float) -> float:
    """Two significant digits: more would pretend to a precision that the model does not have."""
    return float(f"{value:.2g}")


def row(r: Roofline) -> str:
    """A row of the tables in `ce_fx.plan.time_model`: us, GMAC/s, three half points, GB/s."""
    numbers = (r.t0 * 1e6, r.rate / 1e9, r.k0, r.n0, r.m0, r.bandwidth / 1e9)
    return "(" + ", ".join(f"{rounded(n):g}" for n in numbers) + ")"


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--count", type=int, default=7, help="instances of a family")
    parser.add_argument("--budget", type=float, default=0.03, help="seconds of a measurement")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn = [one for family in FAMILIES for one in instances(family, options.count, options.seed)]
    for direction, backward in (("forward", False), ("both", True)):
        start = time.perf_counter()
        priors = dict(DEFAULTS["cpu"][int(backward)])
        by_threads: dict[int, list[Sample]] = {}
        for threads in options.threads:
            torch.set_num_threads(threads)
            by_threads[threads] = [Sample(one.op, measure(one, backward, options.budget)) for one in drawn]
        samples = [s for group in by_threads.values() for s in group]
        spent = time.perf_counter() - start
        table = fitted(samples, priors)
        print(f"# {direction}: {len(drawn)} instances at {options.threads} threads, measured in {spent:.0f} s")
        for name, value in (("defaults", quality(samples, priors)), ("held out", held_out(samples, priors))):
            print(f"#   {name}: Spearman {value[0]:.3f}, typical factor {value[1]:.2f}")
        for threads, group in by_threads.items():
            spearman, factor = quality(group, table)
            print(f"#   fitted, {threads} threads: Spearman {spearman:.3f}, typical factor {factor:.2f}")
        for family in FAMILIES:
            shown = replace(table[family], **{k: 0.0 for k in ("k0", "n0", "m0")} if family in _NO_MACS else {})
            print(f'"{family}": {row(shown)},')


if __name__ == "__main__":
    main()
