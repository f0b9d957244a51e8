"""Rows of the table: what is kept of a measurement, on disk and between runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"
CHANGED = 0.1
"""Of a ratio against the last run: less is noise on a shared machine."""


@dataclass(frozen=True)
class Row:
    """One case in one mode.

    Attributes:
        name: of the case.
        mode: "forward" (eval, no grad) or "train" (forward, and backward to x and every parameter).
        seconds: medians by candidate: "written", "ce_fx", "inductor", "ce_fx+inductor", "dense", "hand: <name>".
        gain: ce_fx over each other candidate, and "ce_fx+inductor" over "inductor", as medians of ratios of rounds.
        spread: half the distance between the quartiles of ce_fx's ratios over as written, relative.
        peak: bytes of the largest intermediate before and after (CUDA: the most that was allocated), or None.
        first: seconds of the first call of a new module, cold, and of another one of the same shapes.
        first_eager: seconds of the first call of `torch.compile(backend="eager")`, which captures and changes nothing.
        decisions: of the report, counted: "1 rewritten, 0 kept".
        reasons: the report's, each with how often it was given.
        difference: between both results, relative to the largest output.
        rounding: by which two orders of a network may differ.
        idle: nothing is to be gained here.
        error: why it was not measured.
    """

    name: str
    mode: str
    seconds: dict[str, float] = field(default_factory=dict)
    gain: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0
    peak: tuple[int, int] | None = None
    first: tuple[float, float] | None = None
    first_eager: float | None = None
    decisions: str = ""
    reasons: dict[str, int] = field(default_factory=dict)
    difference: float = 0.0
    rounding: float = 1e-3
    idle: bool = False
    error: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same row in another run."""
        return self.name, self.mode

    @property
    def best_hand(self) -> str | None:
        """The fastest hand-written order, or None."""
        hands = [name for name in self.seconds if name.startswith("hand: ")]
        return min(hands, key=self.seconds.__getitem__, default=None)


@dataclass(frozen=True)
class Run:
    """Rows measured on one machine with the same options.

    Attributes:
        machine: its kind, threads and torch.
        options: what changes a result, by name.
        rows: in the order of the table.
        when: seconds since 1970.
    """

    machine: str
    options: Mapping[str, Any]
    rows: tuple[Row, ...] = ()
    when: float = 0.0

    def with_rows(self, rows: Iterable[Row]) -> Run:
        """The same run with rows added, or replaced where they exist."""
        merged = {row.key: row for row in self.rows} | {row.key: row for row in rows}
        return Run(self.machine, self.options, tuple(merged.values()), time.time())

    def comparable(self, other: Run) -> bool:
        """Whether the same kind of machine ran with the same options."""
        return self.machine == other.machine and dict(self.options) == dict(other.options)


def to_json(run: Run) -> str:
    """A run as JSON."""
    rows = [asdict(row) for row in run.rows]
    content = {"schema": SCHEMA, "machine": run.machine, "options": dict(run.options), "when": run.when, "rows": rows}
    return json.dumps(content, indent=1)


def from_json(text: str) -> Run:
    """A run from JSON.

    Raises:
        ValueError: the text is no run, or one of another schema.
    """
    try:
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise ValueError(f"results of schema {content['schema']}, this is {SCHEMA}; measure anew")
        return Run(
            content["machine"], content["options"], tuple(_row(each) for each in content["rows"]), content["when"]
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"no results of this benchmark ({error}); delete the file or name another") from None


def _row(content: Mapping[str, Any]) -> Row:
    known = {f.name for f in fields(Row)}
    values = {name: value for name, value in content.items() if name in known}
    for name in ("peak", "first"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Row(**values)


def save(run: Run, path: Path) -> None:
    """Write a run; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(to_json(run))
    temporary.replace(path)


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: the file is no run; the message names it.
    """
    try:
        return from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def last(run: Run, folder: Path = FOLDER, besides: Path | None = None) -> Run | None:
    """The latest run in a folder that can be compared with this one; unreadable files are passed over."""
    found = []
    for path in folder.glob("*.json"):
        if besides is not None and path.resolve() == besides.resolve():
            continue
        try:
            found.append(load(path))
        except ValueError:
            continue  # an older schema, or not ours: nothing to compare with
    found = [other for other in found if run.comparable(other)]
    return max(found, key=lambda other: other.when, default=None)


@dataclass(frozen=True)
class Change:
    """A row whose ratio moved: ce_fx over as written, before and now."""

    name: str
    mode: str
    before: float
    now: float

    def __str__(self) -> str:
        return f"{self.name} {self.mode}: {self.before:.2f}x -> {self.now:.2f}x"


def changes(before: Run, now: Run, least: float = CHANGED) -> list[Change]:
    """Rows of both runs whose ratio of ce_fx over as written differs by more than a share, the worst first."""
    old = {row.key: row.gain["written"] for row in before.rows if "written" in row.gain}
    found = [
        Change(row.name, row.mode, old[row.key], row.gain["written"])
        for row in now.rows
        if row.key in old and "written" in row.gain
    ]
    moved = [c for c in found if max(c.now / c.before, c.before / c.now) > 1 + least]
    return sorted(moved, key=lambda c: c.now / c.before)
