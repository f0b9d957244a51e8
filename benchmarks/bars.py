"""What issue 4 asks of the table: each bar met or not, with the number that says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.results import Row

SLOWEST = 0.97
NEAR_HAND = 0.95


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        text: what is asked.
        rows: a regular expression of names.
        mode: "forward", "train", or "" for both.
        least: what every row has to reach.
        value: the number of a row, or None where it has none.
    """

    text: str
    rows: str
    mode: str
    least: float
    value: Callable[[Row], float | None]


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured: the worst row, and how many of how many fell short."""

    bar: Bar
    value: float
    worst: Row
    short: int
    rows: int

    @property
    def met(self) -> bool:
        """Whether every row reached it."""
        return self.short == 0

    def __str__(self) -> str:
        word = "met    " if self.met else "NOT met"
        count = f"{self.rows - self.short}/{self.rows}"
        where = f"{self.worst.name} {self.worst.mode}"
        return f"{word} {self.bar.text}: at least {self.bar.least:g}x, worst {self.value:.2f}x ({where}), {count} rows"


def over_written(row: Row) -> float | None:
    """ce_fx over as written."""
    return row.gain.get("written")


def over_hand(row: Row) -> float | None:
    """ce_fx over the fastest hand-written order."""
    return row.gain.get(row.best_hand) if row.best_hand else None


def over_merged(row: Row) -> float | None:
    """ce_fx over the fastest CP order in which both strips are one kernel."""
    merged = [name for name in row.gain if name.startswith("hand: merged")]
    return min((row.gain[name] for name in merged), default=None)


def over_inductor(row: Row) -> float | None:
    """ce_fx with Inductor over Inductor alone."""
    return row.gain.get("ce_fx+inductor/inductor")


BARS: tuple[Bar, ...] = (
    *(
        Bar(f"TT {size}, {mode}", rf"^conv/tt/factorized/{size}/\.25$", mode, least, over_written)
        for mode, bars in (
            ("forward", (("64@56", 2.5), ("256@14", 4.0), ("512@7", 4.5))),
            ("train", (("64@56", 2.3), ("256@14", 3.5), ("512@7", 4.0))),
        )
        for size, least in bars
    ),
    Bar("CP as fast as with merged strips", r"^conv/cp/factorized/", "", NEAR_HAND, over_merged),
    Bar("CP 64@56", r"^conv/cp/factorized/64@56/\.25$", "", 1.2, over_written),
    Bar("Tucker 256@14", r"^conv/tucker/factorized/256@14/\.25$", "", 1.4, over_written),
    Bar("Tucker 512@7", r"^conv/tucker/factorized/512@7/\.25$", "", 1.4, over_written),
    Bar("reconstructed at 512@7", r"^conv/\w+/reconstructed/512@7/\.25$", "", 5.0, over_written),
    Bar("every convolution against the best by hand", r"^conv/", "", NEAR_HAND, over_hand),
    Bar("every other layer against the best by hand", r"^(?!conv/|resnet)", "", NEAR_HAND, over_hand),
    Bar("TT ResNet-18, forward", r"^resnet18/tt/factorized", "forward", 1.4, over_written),
    Bar("TT ResNet-18, training", r"^resnet18/tt/factorized", "train", 1.7, over_written),
    Bar("nothing slower than as written", "", "", SLOWEST, over_written),
    Bar("nothing slower than Inductor", "", "", SLOWEST, over_inductor),
)


def judge(rows: Iterable[Row], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """The bars for which a row was measured."""
    kept = list(rows)
    verdicts = []
    for bar in bars:
        values = [
            (value, row)
            for row in kept
            if re.search(bar.rows, row.name) and bar.mode in ("", row.mode) and (value := bar.value(row)) is not None
        ]
        if values:
            value, worst = min(values, key=lambda pair: pair[0])
            verdicts.append(Verdict(bar, value, worst, sum(v < bar.least for v, _ in values), len(values)))
    return verdicts
