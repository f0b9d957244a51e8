"""The device that is calibrated: what its speed depends on, and whether now is a time to measure it."""

from __future__ import annotations

import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

FORM = 5
"""Of the time model's formula and of the instances that are measured; constants of another one mean something else."""

_STAT = Path("/proc/stat")
_LOOK = 0.2  # seconds of watching the cores; the kernel counts in steps of 10 ms
_LOOKS = 3  # what is over at the next look was a burst
_SPARE = (0.5, 0.2)  # cores that others may take of those that torch uses: as many, or this share of them


def device_name(device: torch.device) -> str:
    """The model of the processor or card; of a CPU with the instructions that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_cpu_model()} {torch.backends.cpu.get_cpu_capability()}"
    return device.type


def facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """All that the speed of ops depends on, and that a calibration therefore holds for."""
    found = {
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "formula": str(FORM),
    }
    backends: Any = torch.backends  # its flags are properties that a type checker does not see
    if device.type == "cuda":
        found["cudnn"] = str(backends.cudnn.version()) if backends.cudnn.enabled else "off"
        found["benchmark"] = _flag(backends.cudnn.benchmark)
        found["matmul"] = backends.cuda.matmul.fp32_precision
        found["conv"] = backends.cudnn.conv.fp32_precision
    else:
        found["mkldnn"] = _flag(backends.mkldnn.is_available() and backends.mkldnn.enabled)
        found["matmul"] = backends.mkldnn.matmul.fp32_precision
        found["conv"] = backends.mkldnn.conv.fp32_precision
    found["deterministic"] = _flag(torch.are_deterministic_algorithms_enabled())
    return found


def key(device: torch.device, dtype: torch.dtype) -> str:
    """The facts as text, to keep a calibration under."""
    return ", ".join(f"{name} {value}" for name, value in facts(device, dtype).items())


def obstacle(device: torch.device) -> str | None:
    """Why a device cannot be calibrated here and now, or None: ops cannot be timed, or others use the cores."""
    return untimed(device) or (_busy() if device.type == "cpu" else None)


def untimed(device: torch.device) -> str | None:
    """Why ops cannot be timed on a device here, or None."""
    checks = (
        (device.type == "meta", "meta tensors take no time"),
        (bool(_get_current_dispatch_mode_stack()), "a dispatch mode is active, as FakeTensorMode while tracing"),
        (torch._C._functorch.peek_interpreter_stack() is not None, "a function transform is active"),
        (torch._C._get_tracing_state() is not None, "the caller is being traced"),
    )
    for found, reason in checks:
        if found:
            return reason
    return _cuda_obstacle() if device.type == "cuda" else None


def reachable(device: torch.device) -> bool:
    """Whether a device can be asked what it is; a CUDA device cannot in a child that was forked from a user of it."""
    cuda: Any = torch.cuda  # untyped in part
    return device.type != "cuda" or (cuda.is_available() and not cuda._is_in_bad_fork())


def _cuda_obstacle() -> str | None:
    """Another process on the card is not looked for: two rounds of measurements that disagree tell."""
    cuda: Any = torch.cuda  # untyped in part
    if not cuda.is_available():
        return "there is no CUDA device"
    if cuda._is_in_bad_fork():
        return "CUDA was started before this process was forked"
    if cuda.is_initialized() and cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def _busy() -> str | None:
    """Whether other processes use the cores that torch's threads need; None where that cannot be seen."""
    cores = os.cpu_count() or 1
    ours = min(cores, torch.get_num_threads())
    room = cores - ours + max(_SPARE[0], _SPARE[1] * ours)
    for _ in range(_LOOKS):
        busy = _cores_of_others()
        if busy is None or busy <= room:
            return None
    return f"other processes use {busy:.1f} of {cores} cores"


def _cores_of_others() -> float | None:
    """Cores in use while this thread sleeps, those by niced processes aside, which make way."""
    before, own, start = _jiffies(), time.process_time(), time.perf_counter()
    if before is None:
        return None
    time.sleep(_LOOK)
    after, wall = _jiffies(), time.perf_counter() - start
    assert after is not None
    used = (after - before) / os.sysconf("SC_CLK_TCK") - (time.process_time() - own)
    return max(0.0, used / wall)


def _jiffies() -> int | None:
    """Busy time of all cores: user, system, irq, softirq, steal (proc(5)); neither nice nor idle."""
    try:
        fields = _STAT.read_text().splitlines()[0].split()
        return sum(int(fields[n]) for n in (1, 3, 6, 7, 8))
    except (OSError, IndexError, ValueError):  # not Linux
        return None


@cache
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux: the platform's word is coarser
    return platform.processor() or platform.machine()


def _flag(value: bool) -> str:
    return "on" if value else "off"
