"""Which of some functions is fastest: timed in turn, so that other load falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ce_fx.tune.clock import clock_of, settle_allocator

Run: TypeAlias = Callable[[], object]

_TIMING = 1e-3  # seconds of one timing: a short function is run several times in it
_ROUNDS = (6, 40)  # at least and at most
_FAR = 1.5  # times the fastest's first time


@dataclass(frozen=True)
class Race:
    """The outcome, in the order of the functions.

    Attributes:
        seconds: the time of each: the lower quartile of its rounds, since other load only adds.
        noise: how far the first one's times in the odd and in the even rounds differ; 0.03 is 3 %.
    """

    seconds: tuple[float, ...]
    noise: float

    @property
    def gains(self) -> tuple[float, ...]:
        """The first one's time over each one's."""
        return tuple(self.seconds[0] / one for one in self.seconds)

    @property
    def winner(self) -> int:
        """The number of the fastest."""
        return min(range(len(self.seconds)), key=self.seconds.__getitem__)


def race(runs: Sequence[Run], device: torch.device, budget: float) -> Race:
    """Time functions in turn: A B C, A B C, ..

    Args:
        runs: functions without arguments, each ready to be run often.
        device: what they run on; its queue is waited for.
        budget: seconds to spend; six rounds are run at least. What is far behind after two runs is not run again, so
            that hopeless candidates cost little.
    """
    settle_allocator()
    clock = clock_of(device)
    once = []
    for run in runs:
        run()  # what a first run alone pays: pages, workspaces, a compiler
        once.append(max(1e-7, min(clock(run, 1, device), clock(run, 1, device))))
    running = [n for n, seconds in enumerate(once) if n == 0 or seconds < _FAR * min(once)]
    repeats = {n: max(1, round(_TIMING / once[n])) for n in running}
    rounds: list[list[float]] = []
    end = time.perf_counter() + budget
    while len(rounds) < _ROUNDS[0] or (len(rounds) < _ROUNDS[1] and time.perf_counter() < end):
        rounds.append([clock(runs[n], repeats[n], device) for n in running])
    timed = outcome(rounds)
    for n, seconds in zip(running, timed.seconds, strict=True):
        once[n] = seconds
    return Race(tuple(once), timed.noise)


def outcome(rounds: Sequence[Sequence[float]]) -> Race:
    """What rounds of timings say; four at least."""
    columns = list(zip(*rounds, strict=True))
    odd, even = _quartile(columns[0][::2]), _quartile(columns[0][1::2])
    return Race(tuple(map(_quartile, columns)), abs(odd - even) / min(odd, even))


def _quartile(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=4, method="inclusive")[0]
