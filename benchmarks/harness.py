"""Times of several candidates, interleaved, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

import torch


@dataclass(frozen=True)
class Timing:
    """Medians over all rounds, or over those that two candidates share.

    Attributes:
        seconds: of each candidate.
        ratio: the first candidate's time over each candidate's, round by round.
        rounds: each candidate's seconds, round by round.
    """

    seconds: dict[str, float]
    ratio: dict[str, float]
    rounds: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def gain(self, name: str, over: str) -> float:
        """How many times faster a candidate is than another: the median of the ratios round by round."""
        return statistics.median(_ratios(self.rounds[over], self.rounds[name]))

    def spread(self, name: str, over: str) -> float:
        """Half the distance between the quartiles of those ratios, relative to their median; 0 below 4 rounds."""
        ratios = _ratios(self.rounds[over], self.rounds[name])
        if len(ratios) < 4:
            return 0.0
        low, middle, high = statistics.quantiles(ratios, n=4)
        return (high - low) / 2 / middle

    def fastest(self, names: Iterable[str]) -> str:
        """The candidate with the smallest median time."""
        return min(names, key=self.seconds.__getitem__)


def compare(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 11,
    budget: float = 0.05,
    warm: bool = False,
    far: float = inf,
    near: str | None = None,
) -> Timing:
    """Time candidates in turn.

    Args:
        candidates: by name; the first is what the others are compared with.
        rounds: how often each is timed, in turn.
        budget: seconds that one timing of one candidate should take at least.
        warm: every candidate has run before.
        far: times that of `near`, from which a candidate is timed in two rounds only.
        near: a candidate; without one the fastest.
    """
    once = {}
    for name, run in candidates.items():
        if not warm:
            seconds_of(run)
        once[name] = max(1e-9, seconds_of(run))
    repeats = {name: max(1, round(budget / seconds)) for name, seconds in once.items()}
    slow = far * once.get(near or "", min(once.values()))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        running = [name for name in candidates if number < 2 or once[name] < slow]
        # Every other round runs backwards: what a candidate leaves in the caches is not always met by the same one.
        for name in running[:: -1 if number % 2 else 1]:
            times[name].append(seconds_of(candidates[name], repeats[name]))
    first = next(iter(candidates))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratio = {name: statistics.median(_ratios(times[first], values)) for name, values in times.items()}
    return Timing(seconds, ratio, {name: tuple(values) for name, values in times.items()})


def machine(device: str = "cpu") -> str:
    """The machine by its kind, with the card of a device."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            cpu = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    card = f"{torch.cuda.get_device_name(device)}, " if device.startswith("cuda") else ""
    return f"{card}{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def allocated(run: Callable[[], object]) -> int:
    """Bytes that a run has allocated at its peak on the current CUDA device, beside what was there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def seconds_of(run: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one run, averaged over some; work that was queued on a GPU is waited for."""
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    _synchronize()
    return (time.perf_counter() - start) / repeats


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _ratios(over: Iterable[float], values: Iterable[float]) -> list[float]:
    return [a / b for a, b in zip(over, values, strict=False)]  # one that is far off has fewer rounds
