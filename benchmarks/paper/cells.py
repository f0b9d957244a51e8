"""What is measured of one network in one mode, and how."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.harness import machine
from benchmarks.paper.ways import names
from benchmarks.paper.workloads import Workload

Key = tuple[str, str, float, str, str, str]


FAR = 3.0
"""Times `rebuilt`, from which a way is timed in two rounds only: left to right takes most of a cell's time."""


@dataclass(frozen=True)
class Cell:
    """One network in one mode.

    Attributes:
        workload, form, rate, mode: which.
        where: geometry and device.
        by: the kind of the machine, its threads, torch's version and the number of rounds.
        layers: factorised ones.
        rounds: seconds by way, round by round; of one that takes too long those of a part of the batch, times the rest.
        peaks: (batch size, bytes of a step with weights and inputs) by way; the last is of the batch that is timed.
            One of them where there is no other in the same order.
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
        memory: bytes that a step from left to right may take; if it would take more, two examples are timed.
        ways: a pattern of the ways that are measured.
        tune: as in `ce_fx.optimize`.
        patience: seconds of a run from left to right; one that would take longer is timed on two examples.
    """

    size: str = "cpu"
    device: str = "cpu"
    rounds: int = 7
    inductor: bool = False
    batch: int | None = None
    memory: int = 12 << 30
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
        return f"{machine(self.device)}, {self.rounds} rounds, two of what is slow"
