"""What examples print about times."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping

import torch

from ce_fx.tune.race import race


def compare(runs: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> None:
    """Time functions in turn on the CPU, and print the times and the gain of each over the first.

    Args:
        runs: by name.
        seconds: to spend, about.
    """
    timed = race(list(runs.values()), torch.device("cpu"), seconds)
    for name, one, gain in zip(runs, timed.seconds, timed.gains, strict=True):
        print(f"{name:20} {one * 1e3:8.3f} ms   {gain:.2f}x")
    if timed.noise > 0.1:
        print(f"(the machine is busy: two halves of the measurement differ by {timed.noise:.0%})")


def machine() -> str:
    """The machine by its kind, for the head of an output."""
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"
