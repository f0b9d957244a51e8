"""Measuring one network in one mode: all ways in turn in one process, and the bytes of each.

In training bytes are counted at two batch sizes, for the largest batch; inference has no table of these.
"""

from __future__ import annotations

import copy
import re
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import ce_fx
from benchmarks.harness import compare, machine
from benchmarks.paper.again import Orders
from benchmarks.paper.peak import peak_bytes, saved_bytes, standing
from benchmarks.paper.ways import (
    BY_INDUCTOR,
    DENSE,
    LEFT,
    LEFT_CHECKPOINTED,
    OURS,
    REBUILT,
    Way,
    gradients,
    names,
    results,
    way,
)
from benchmarks.paper.workloads import Batch, Workload

Key = tuple[str, str, float, str, str, str]


FAR = 3.0
"""Times the fastest, from which a way is timed in two rounds only: left to right takes most of a cell's time."""


@dataclass(frozen=True)
class Cell:
    """One network in one mode.

    Attributes:
        workload, form, rate, mode: which.
        where: geometry and device.
        by: the kind of the machine, its threads, torch's version and the number of rounds.
        layers: factorised ones.
        rounds: seconds by way, round by round; of one that takes too long those of a part of the batch, times the rest.
        peaks: (batch size, bytes of a step with weights and inputs) by way; the last is of the batch that is timed,
            unless the way is not run there. One of them where there is no other in the same order.
        errors: largest difference to `rebuilt` by way, relative, in single precision.
        notes: what there is to say of a way: what the report counts, or why it was not measured.
        error: why the cell was not measured.
    """

    workload: str
    form: str
    rate: float
    mode: str
    where: str
    by: str
    layers: int = 0
    rounds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> Key:
        """What makes it the same cell in another run."""
        return self.workload, self.form, self.rate, self.mode, self.where, self.by

    def holds(self, ways: Sequence[str]) -> bool:
        """Whether each of some ways was measured, or has a note that says why not."""
        return {*self.rounds, *self.notes}.issuperset(ways)

    def seconds(self, name: str) -> float:
        """The median time of a way."""
        return statistics.median(self.rounds[name])

    def gain(self, name: str, over: str) -> float | None:
        """How many times faster one way is than another, as the median over the rounds."""
        if name not in self.rounds or over not in self.rounds:
            return None
        return statistics.median(a / b for a, b in zip(self.rounds[over], self.rounds[name], strict=False))


@dataclass(frozen=True)
class Settings:
    """How cells are measured.

    Attributes:
        size: of the workloads.
        device: where to run.
        rounds: of the comparison.
        inductor: also measure what Inductor compiles.
        batch: instead of the workload's own.
        memory: bytes that a way may save for its backward; one that would save more is not run.
        ways: a pattern of the ways that are measured.
        tune: as in `ce_fx.optimize`.
        patience: seconds of a run from left to right; one that would take longer is timed on two examples.
    """

    size: str = "cpu"
    device: str = "cpu"
    rounds: int = 7
    inductor: bool = False
    batch: int | None = None
    memory: int = 8 << 30
    ways: str = ""
    tune: bool | str = "auto"
    patience: float = 20.0

    def batch_of(self, workload: Workload) -> int:
        """Examples of a batch, at least 2: one of 1 is another network, whose batch is no axis that counts."""
        return max(2, self.batch or workload.sizes[self.size].batch)

    def chosen(self, mode: str) -> list[str]:
        """The names of the ways to measure in a mode."""
        return [name for name in names(mode, self.inductor) if re.search(self.ways, name)]

    def where(self, workload: Workload) -> str:
        """What else makes a cell."""
        geometry = workload.sizes[self.size].geometry
        tuned = {"True": ", tuned", "False": ", not tuned"}.get(str(self.tune), "")
        return f"{self.batch_of(workload)} {geometry}, {self.device}{tuned}"

    def by(self) -> str:
        """What measures: times of other machines, or of fewer rounds, are other cells."""
        return f"{machine(self.device)}, {self.rounds} rounds, two of what takes {FAR:g} times the fastest"


def measure(workload: Workload, form: str, rate: float, mode: str, settings: Settings) -> Cell:
    """One cell.

    Args:
        workload: the network and its batches.
        form: of the factorised layers.
        rate: of their weights.
        mode: "train" or "inference".
        settings: how.
    """
    torch.manual_seed(0)
    size, batch = workload.sizes[settings.size], settings.batch_of(workload)
    model, layers = workload.factorise(size.make(), form, rate)
    model = model.to(settings.device).train(mode == "train")
    notes: dict[str, str] = {}
    peaks: dict[str, list[tuple[int, int]]] = {}
    decided: dict[str, list[str]] = {}
    chosen = settings.chosen(mode)
    orders = {name: Orders() for name in chosen if name in OURS}

    def inputs(count: int) -> list[Batch]:
        return [tuple(tensor.to(settings.device) for tensor in each) for each in size.inputs(count)]

    def ready(names: Sequence[str], count: int, batches: Sequence[Batch], again: bool = False) -> dict[str, Way]:
        """Ways that have run, with their bytes counted; with `again` in the orders that were chosen before."""
        torch._dynamo.reset()  # the classes' code is shared: Dynamo gives up after eight views of it
        ways = {}
        for name in names:
            held = nullcontext() if name not in orders else orders[name].again() if again else orders[name].kept()
            with held:
                ways[name] = one = way(name, model, batches, mode, settings.tune)
                # Sizes that vary are captured at the second batch; nothing that stays is made after that.
                for _ in range(2 if name in OURS or name in BY_INDUCTOR else 1):
                    one.step()
            if again and name in OURS and decisions(one.run) != decided[name]:
                notes[name] += f"; another order at a batch of {count}"
                continue
            given = (tensor for each in batches for tensor in each)
            bytes_ = peak_bytes(one.step, settings.device) + standing(one.model, given)
            peaks.setdefault(name, []).insert(0, (count, bytes_))
        return ways

    def few(name: str, count: int) -> float:
        """Seconds of a way's first run of some examples, whose bytes are counted."""
        given = inputs(count)
        one = way(name, model, given, mode)
        start = time.perf_counter()
        bytes_ = peak_bytes(one.step, settings.device)
        seconds = time.perf_counter() - start
        bytes_ += standing(one.model, (tensor for each in given for tensor in each))
        peaks.setdefault(name, []).append((count, bytes_))
        return seconds

    def slow() -> dict[str, list[float]]:
        """Seconds of what goes from left to right for longer than one waits, from two examples.

        A run of the ResNet-34 as RCP with 5 % of the dense weights takes half a minute, and with all of them ten.
        """
        found = {}
        for name in [one for one in (LEFT, LEFT_CHECKPOINTED) if one in chosen and batch > 4]:
            seconds = few(name, 2) * batch / 2
            if seconds <= settings.patience:
                del peaks[name]
                continue
            chosen.remove(name)
            found[name] = [seconds]
            notes[name] = f"{batch / 2:g} times one run of 2 examples"
            if mode == "train":
                few(name, 4)
        return found

    with gradients(mode):
        other = batch // 2 if batch >= 4 else 2 * batch
        whole, inputs_of_other = inputs(batch), inputs(other)
        small = fitting(model, whole, batch, settings.memory) if mode == "train" and LEFT in chosen else batch
        if small < batch:
            chosen.remove(LEFT)
        long = slow()
        ways = ready(chosen, batch, whole)
        timing = compare({name: one.step for name, one in ways.items()}, settings.rounds, warm=True, far=FAR)
        decided |= {name: decisions(ways[name].run) for name in ways if name in OURS}
        notes |= {name: counted(found) for name, found in decided.items()}
        if mode == "train":
            ways = ready(chosen, other, inputs_of_other, again=True)
        errors = errors_of(ways, inputs_of_other if mode == "train" else whole, mode)
        if small < batch:
            notes[LEFT] = f"not run: its backward needs more than {settings.memory / 2**30:g} GiB"
            if small > 1:
                notes[LEFT] += f"; bytes of batches {small // 2} and {small}"
                for count in (small, small // 2):
                    ready([LEFT], count, inputs(count))
    return Cell(
        workload.name,
        form,
        rate,
        mode,
        settings.where(workload),
        settings.by(),
        layers,
        long | {name: list(each) for name, each in timing.rounds.items()},
        {name: tuple(each) for name, each in peaks.items()},
        errors,
        notes,
    )


def fitting(model: nn.Module, batches: Sequence[Batch], batch: int, memory: int) -> int:
    """The largest of a batch, its half, its quarter.. at which left to right saves no more than some bytes; below 2, 1.

    What it saves grows with the batch, and its weights are little of it.
    """
    needed = written_bytes(model, batches)
    small = batch
    while small > 1 and needed * small > memory * batch:
        small //= 2
    return small


def written_bytes(model: nn.Module, batches: Sequence[Batch]) -> int:
    """Bytes that the order from left to right saves for its backward, found without making them."""
    ghost = copy.deepcopy(model).to("meta")
    ghosts = [tuple(tensor.to("meta") for tensor in batch) for batch in batches]
    with torch.enable_grad():
        run = way(LEFT, ghost, ghosts, "train").run
        return max(saved_bytes(lambda batch=batch: run(*batch)) for batch in ghosts)


def errors_of(ways: dict[str, Way], batches: Sequence[Batch], mode: str) -> dict[str, float]:
    """The largest difference of outputs and gradients to those of `rebuilt`, by norm; the dense weights are others.

    In training a rounding may put an activation on the other side of a ReLU: on the ResNet-34 at batch 2 left to right
    is then 1e-3 to 5e-3 from `rebuilt`, and so is any order that does not build the same kernels; each layer by itself
    is right to 1e-6, and in float64 so is the whole.
    """
    if REBUILT not in ways:
        return {}
    true = list(results(ways[REBUILT], batches, mode))
    errors = {}
    for name, one in ways.items():
        pairs = [(a, b) for a, b in zip(results(one, batches, mode), true, strict=True) if a.shape == b.shape]
        dense = name == DENSE or BY_INDUCTOR.get(name) == DENSE
        errors[name] = max(float((a - b).norm() / b.norm()) for a, b in pairs if not (dense and a.dim() == 1))
    return errors


def decisions(fast: Callable[..., Any]) -> list[str]:
    """What a view's report says of each factorised layer."""
    return [layer.decision for layer in ce_fx.report(fast).layers]


def counted(found: Sequence[str]) -> str:
    """Decisions, counted: "32 rewritten"."""
    return ", ".join(f"{found.count(name)} {name}" for name in ("rewritten", "kept", "refused") if name in found)
