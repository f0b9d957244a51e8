"""Seconds of one run of a tensor op, forward or with its backward, on any device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ce_fx.plan.ops import Op
from ce_fx.tune.clock import clock_of, plain_mode, settle_allocator
from ce_fx.tune.instances import Instance

_TIMING = 1e-4  # seconds of one timing of a small op: shorter than a slice of the scheduler
_LEAST = 2  # timings of an op, however slow it is


@dataclass(frozen=True)
class Sample:
    """What was measured.

    Attributes:
        op: what ran.
        forward: seconds of a forward pass.
        both: seconds of a forward pass and the backward of all operands.
    """

    op: Op
    forward: float
    both: float

    def seconds(self, backward: bool) -> float:
        """Those of one direction."""
        return self.both if backward else self.forward


def measure(one: Instance, device: torch.device, dtype: torch.dtype, budget: float) -> Sample:
    """Time an instance in both directions.

    Args:
        one: what to run.
        device: where.
        dtype: of its operands, floating point or complex.
        budget: seconds to spend; the slowest ops take more, for each is timed twice at least.
    """
    settle_allocator()
    with plain_mode(device):
        generator = torch.Generator(device).manual_seed(0)  # one of our own: the global one is the user's
        operands = [
            torch.randn(shape, device=device, dtype=dtype, generator=generator).requires_grad_() for shape in one.shapes
        ]
        grad = torch.ones_like(one.compute(*operands))

        def forward() -> object:
            return one.compute(*operands)

        def both() -> object:
            return torch.autograd.grad(one.compute(*operands), operands, grad)

        with torch.no_grad():
            ahead = least_time(forward, device, budget / 3)
        return Sample(one.op, ahead, least_time(both, device, budget * 2 / 3))


def least_time(run: Callable[[], object], device: torch.device, budget: float) -> float:
    """Seconds of one run: the second least of many short timings, since other load only adds.

    Args:
        run: what to time; it runs warm, its operands in whatever cache holds them.
        device: where it runs; its queue is waited for.
        budget: seconds to spend.
    """
    clock = clock_of(device)
    run()
    single = clock(run, 1, device)
    repeats = max(1, round(_TIMING / max(single, 1e-7)))
    timings: list[float] = []
    end = time.perf_counter() + budget
    while len(timings) < _LEAST or time.perf_counter() < end:
        timings.append(clock(run, repeats, device))
    return sorted(timings)[1]


def merged(rounds: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The least of each instance over rounds of the same instances: other load only adds, and comes in bursts."""
    return [
        Sample(same[0].op, min(s.forward for s in same), min(s.both for s in same))
        for same in zip(*rounds, strict=True)
    ]


def disagreement(rounds: Sequence[Sequence[Sample]]) -> float:
    """The median factor between two rounds of the same instances: 1.02 on a quiet machine, 1.3 on a loaded one."""
    factors = [
        abs(math.log(a.seconds(backward) / b.seconds(backward)))
        for a, b in zip(rounds[0], rounds[-1], strict=True)
        for backward in (False, True)
    ]
    return math.exp(statistics.median(factors))
