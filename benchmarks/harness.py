"""Interleaved timing: A B A B .. in one process, medians, and the median of the ratios round by round."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Medians over all rounds.

    Attributes:
        seconds: of each candidate.
        ratio: the first candidate's time over each candidate's, round by round.
    """

    seconds: dict[str, float]
    ratio: dict[str, float]


def compare(candidates: Mapping[str, Callable[[], object]], rounds: int = 11, budget: float = 0.05) -> Timing:
    """Time candidates in turn.

    Args:
        candidates: by name; the first is what the others are compared with.
        rounds: how often each is timed, in turn.
        budget: seconds that one timing of one candidate should take at least.
    """
    repeats = {}
    for name, run in candidates.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(budget / max(1e-9, time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            times[name].append((time.perf_counter() - start) / repeats[name])
    first = next(iter(candidates))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratio = {
        name: statistics.median(a / b for a, b in zip(times[first], values, strict=True))
        for name, values in times.items()
    }
    return Timing(seconds, ratio)


def machine() -> str:
    """The machine by its kind."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            cpu = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"
