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
        unit: of the number.
        at_most: `least` is what no row may exceed.
    """

    text: str
    rows: str
    mode: str
    least: float
    value: Callable[[Row], float | None]
    unit: str = "x"
    at_most: bool = False

    def meets(self, value: float) -> bool:
        """Whether a number is good enough."""
        return value <= self.least if self.at_most else value >= self.least


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
        asked = f"{'at most' if self.bar.at_most else 'at least'} {self.bar.least:g}{self.bar.unit}"
        return f"{word} {self.bar.text}: {asked}, worst {self.value:.2f}{self.bar.unit} ({where}), {count} rows"


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


def first_call(row: Row) -> float | None:
    """Seconds of a new module's first call."""
    return row.first[0] if row.first else None


def over_capture(row: Row) -> float | None:
    """The first call over that of `torch.compile(backend="eager")`."""
    return row.first[0] / row.first_eager if row.first and row.first_eager else None


FIRST_CALL = {"auto": 60.0, "no": 20.0}
"""Seconds that tensorly-torch's ResNet-18 may take, by `--tune`."""

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
    Bar("capture alone, plain ResNet-18", "^resnet18/plain", "", 1.2, over_capture, at_most=True),
)


def bars_of(tune: str) -> tuple[Bar, ...]:
    """The bars of a run with a value of `--tune`: on the first call there is one for some of them."""
    if tune not in FIRST_CALL:
        return BARS
    name = f"first call of ResNet-18, tune {tune}"
    return (*BARS, Bar(name, "^resnet18/", "", FIRST_CALL[tune], first_call, " s", at_most=True))


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
            value, worst = (max if bar.at_most else min)(values, key=lambda pair: pair[0])
            short = sum(not bar.meets(value) for value, _ in values)
            verdicts.append(Verdict(bar, value, worst, short, len(values)))
    return verdicts
