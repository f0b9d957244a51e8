"""Seconds on the clock of a device, and the state in which code is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, TypeAlias

import torch

Clock: TypeAlias = Callable[[Callable[[], object], int, torch.device], float]
"""`clock(run, repeats, device)`: seconds of one of `repeats` runs in a row; the device's queue is waited for."""


def clock_of(device: torch.device) -> Clock:
    """The clock of a kind of device: the host's, or the device's own events where it has a queue."""
    return _CLOCKS.get(device.type, _clock_waiting)


@cache
def settle_allocator() -> None:
    """Bring the host's allocator into the state that a process with larger tensors is in, once.

    glibc hands out memory of a size that it has not seen freed yet by new pages, which are cleared one by one, and
    gives pages back when twice that size lies free (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD in mallopt(3)). Until then the
    same op takes up to three times as long, or not, by what ran before it. One free block of just under 32 MiB, the
    largest that counts, ends that.
    """
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8, device="cpu").fill_(0)


@contextmanager
def plain_mode(device: torch.device) -> Iterator[None]:
    """Whatever the caller is in the middle of, run plain numbers with gradients."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _clock_host(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _clock_waiting(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """For a queue without events of its own."""
    wait = torch.get_device_module(device).synchronize
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return (time.perf_counter() - start) / repeats


def _clock_cuda(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        event: Any = torch.cuda.Event  # untyped in torch
        start, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / repeats


_CLOCKS: dict[str, Clock] = {
    "cpu": _clock_host,
    "cuda": _clock_cuda,
}
