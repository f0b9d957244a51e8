"""Which of some functions is fastest: timed in turn, so that other load falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

import torch

from ce_fx.tune.clock import clock_of, settle_allocator

Run: TypeAlias = Callable[[], object]

_TIMING = 1e-3  # seconds of one timing: a short function is run several times in it
_ROUNDS = (6, 40)  # at least and at most
_MOST = 8  # times the budget, where the least number of rounds takes that long
_FAR = 1.5  # times the fastest's first time
_BEHIND = 3.0  # times it, from which the first two runs say enough of what the others are compared with, too


@dataclass(frozen=True)
class Race:
    """The outcome, in the order of the functions.

    Attributes:
        seconds: the time of each: the lower quartile of its rounds, since other load only adds.
        noise: how far one function's times in the odd and in the even rounds differ; 0.03 is 3 %. That is the first
            one, or where it is far behind the next that is not.
        sure: the first one's time over each one's, in the odd or in the even rounds, whichever is less.
    """

    seconds: tuple[float, ...]
    noise: float
    sure: tuple[float, ...] = ()

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
        budget: seconds to spend, about; six rounds are run at least, if they take no longer than eight times that.
            What is far behind after two runs is not run again, so that hopeless candidates cost little, and neither is
            a slow first one: its rounds would leave no room for the others.
    """
    settle_allocator()
    clock = clock_of(device)
    once = []
    for run in runs:
        run()  # what a first run alone pays: pages, workspaces, a compiler
        once.append(max(1e-7, min(clock(run, 1, device), clock(run, 1, device))))
    running = _in_reach(once, _MOST * budget / _ROUNDS[0])
    repeats = {n: max(1, round(_TIMING / once[n])) for n in running}
    rounds: list[list[float]] = []
    start = time.perf_counter()
    spent = 0.0
    while (len(rounds) < _ROUNDS[0] and spent < _MOST * budget) or (len(rounds) < _ROUNDS[1] and spent < budget):
        rounds.append([clock(runs[n], repeats[n], device) for n in running])
        spent = time.perf_counter() - start
    timed = outcome(rounds, None if 0 in running else once[0])
    sure = [0.0] * len(runs)
    for place, n in enumerate(running):
        once[n], sure[n] = timed.seconds[place], timed.sure[place]
    return Race(tuple(once), timed.noise, tuple(sure))


def _in_reach(once: Sequence[float], seconds: float) -> list[int]:
    """The first function, if it is not far behind, and as many of those near the fastest as a round has room for."""
    near = sorted((one, n) for n, one in enumerate(once) if n and one < _FAR * min(once))
    running, room = ([0], seconds - once[0]) if once[0] < _BEHIND * min(once) else ([], seconds)
    for one, n in near:
        room -= one
        if room < 0 and any(running):  # one rival at least
            break
        running.append(n)
    return sorted(running)


def outcome(rounds: Sequence[Sequence[float]], first: float | None = None) -> Race:
    """What rounds of timings say; fewer than four say nothing of the noise, which then counts as infinite.

    Args:
        rounds: the seconds of each function.
        first: those of what they are compared with, where it is not one of them.
    """
    columns = list(zip(*rounds, strict=True))
    if len(rounds) < 4:
        return Race(tuple(map(min, columns)), inf, (0.0,) * len(columns))
    halves = [[_quartile(column[start::2]) for column in columns] for start in (0, 1)]
    odd, even = halves[0][0], halves[1][0]
    sure = tuple(min((first or half[0]) / half[n] for half in halves) for n in range(len(columns)))
    return Race(tuple(map(_quartile, columns)), abs(odd - even) / min(odd, even), sure)


def _quartile(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=4, method="inclusive")[0]
