"""Which of some functions is fastest: timed in turn, so that other load falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ce_fx.tune.clock import clock_of

Run: TypeAlias = Callable[[], object]

_TIMING = 1e-3  # seconds of one timing: a short function is run several times in it
_ROUNDS = (5, 25)  # at least and at most


@dataclass(frozen=True)
class Race:
    """The outcome, in the order of the functions.

    Attributes:
        seconds: the median time of each.
        gains: the median over the rounds of the first one's time over each one's.
        noise: how far two timings of the first one in one round differ, the median over the rounds; 0.03 is 3 %.
    """

    seconds: tuple[float, ...]
    gains: tuple[float, ...]
    noise: float


def race(runs: Sequence[Run], device: torch.device, budget: float) -> Race:
    """Time functions in turn: A B C A, A B C A, ..

    The first is timed at both ends of a round, and the others are compared with the mean of the two.

    Args:
        runs: functions without arguments, each ready to be run often.
        device: what they run on; its queue is waited for.
        budget: seconds to spend; five rounds are run at least.
    """
    clock = clock_of(device)
    repeats, single = [], 0.0
    for run in runs:
        run()  # what a first run alone pays: pages, workspaces, a compiler
        once = max(1e-7, min(clock(run, 1, device), clock(run, 1, device)))
        repeats.append(max(1, round(_TIMING / once)))
        single += once * repeats[-1]
    rounds: list[list[float]] = []
    end = time.perf_counter() + budget
    while len(rounds) < _ROUNDS[0] or (len(rounds) < _ROUNDS[1] and time.perf_counter() + single < end):
        times = [clock(run, n, device) for run, n in zip(runs, repeats, strict=True)]
        rounds.append([*times, clock(runs[0], repeats[0], device)])
    return outcome(rounds)


def outcome(rounds: Sequence[Sequence[float]]) -> Race:
    """What rounds of timings say; the last timing of a round is of the first function again."""
    firsts = [(times[0] + times[-1]) / 2 for times in rounds]
    columns = [firsts, *(list(column) for column in list(zip(*rounds, strict=True))[1:-1])]
    gains = [statistics.median(first / one for first, one in zip(firsts, column, strict=True)) for column in columns]
    noise = statistics.median(abs(times[0] - times[-1]) / min(times[0], times[-1]) for times in rounds)
    return Race(tuple(statistics.median(column) for column in columns), tuple(gains), noise)
