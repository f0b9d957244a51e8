"""Measuring one network in one mode: all ways in turn in one process, and the bytes of each at two batch sizes."""

from __future__ import annotations

import copy
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import ce_fx
from benchmarks.harness import compare
from benchmarks.paper.peak import peak_bytes, saved_bytes, standing
from benchmarks.paper.ways import DENSE, LEFT, OURS, REBUILT, Way, gradients, names, results, way
from benchmarks.paper.workloads import Batch, Workload

Key = tuple[str, str, float, str, str]


@dataclass(frozen=True)
class Cell:
    """One network in one mode.

    Attributes:
        workload, form, rate, mode: which.
        where: geometry, device and threads.
        layers: factorised ones.
        batches: the two batch sizes whose bytes were counted; times are of the second.
        rounds: seconds by way, round by round.
        peaks: bytes of a step by way at both batch sizes, with weights and inputs.
        errors: largest difference to `rebuilt` by way, relative, in single precision.
        notes: what there is to say of a way: what the report counts, or why it was not measured.
        error: why the cell was not measured.
    """

    workload: str
    form: str
    rate: float
    mode: str
    where: str
    layers: int = 0
    batches: tuple[int, int] = (1, 2)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> Key:
        """What makes it the same cell in another run."""
        return self.workload, self.form, self.rate, self.mode, self.where

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
        return statistics.median(a / b for a, b in zip(self.rounds[over], self.rounds[name], strict=True))


@dataclass(frozen=True)
class Settings:
    """How cells are measured.

    Attributes:
        size: of the workloads.
        device: where to run.
        rounds: of the comparison.
        inductor: also measure ce_fx with Inductor.
        batch: instead of the workload's own.
        memory: bytes that a way may save for its backward; one that would save more is not run.
        ways: a pattern of the ways that are measured.
        tune: as in `ce_fx.optimize`.
    """

    size: str = "cpu"
    device: str = "cpu"
    rounds: int = 7
    inductor: bool = False
    batch: int | None = None
    memory: int = 8 << 30
    ways: str = ""
    tune: bool | str = "auto"

    def batch_of(self, workload: Workload) -> int:
        """Examples of a batch, at least 2, so that half of it is a batch, too."""
        return max(2, self.batch or workload.sizes[self.size].batch)

    def chosen(self, mode: str) -> list[str]:
        """The names of the ways to measure in a mode."""
        return [name for name in names(mode, self.inductor) if re.search(self.ways, name)]

    def where(self, workload: Workload) -> str:
        """What else makes a cell."""
        geometry = workload.sizes[self.size].geometry
        threads = "" if self.device.startswith("cuda") else f", {torch.get_num_threads()} threads"
        tuned = {"True": ", tuned", "False": ", not tuned"}.get(str(self.tune), "")
        return f"{self.batch_of(workload)} {geometry}, {self.device}{threads}{tuned}"


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
    batches = {n: [tuple(t.to(settings.device) for t in each) for each in size.inputs(n)] for n in (batch // 2, batch)}
    peaks: dict[str, list[int]] = {}
    notes: dict[str, str] = {}
    chosen = settings.chosen(mode)
    if mode == "train" and LEFT in chosen:
        needed = written_bytes(model, batches[batch])
        if needed > settings.memory:
            chosen.remove(LEFT)
            notes[LEFT] = f"not run: its backward needs {needed / 2**30:.0f} GiB"
    ways: dict[str, Way] = {}
    with gradients(mode):
        for inputs in batches.values():
            torch._dynamo.reset()  # the classes' code is shared: Dynamo gives up after eight views of it
            ways.clear()
            for name in chosen:
                ways[name] = way(name, model, inputs, mode, settings.tune)
                for _ in range(2):  # sizes that vary are captured at the second batch; nothing is made after that
                    ways[name].step()
                peak = peak_bytes(ways[name].step, settings.device)
                given = (tensor for each in inputs for tensor in each)
                peaks.setdefault(name, []).append(peak + standing(ways[name].model, given))
        errors = errors_of(ways, batches[batch], mode)
        timing = compare({name: one.step for name, one in ways.items()}, settings.rounds)
    notes |= {name: counted(ways[name].run) for name in ways if name in OURS}
    return Cell(
        workload.name,
        form,
        rate,
        mode,
        settings.where(workload),
        layers,
        (batch // 2, batch),
        {name: list(each) for name, each in timing.rounds.items()},
        {name: (each[0], each[1]) for name, each in peaks.items()},
        errors,
        notes,
    )


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
        errors[name] = max(float((a - b).norm() / b.norm()) for a, b in pairs if not (name == DENSE and a.dim() == 1))
    return errors


def counted(fast: Callable[..., Any]) -> str:
    """What a view's report says of the factorised layers, counted: "32 rewritten"."""
    found = [layer.decision for layer in ce_fx.report(fast).layers]
    return ", ".join(f"{found.count(name)} {name}" for name in ("rewritten", "kept", "refused") if name in found)
