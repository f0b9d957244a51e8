"""The tables: every way of every cell, and what the paper claims beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from benchmarks.paper.cells import Cell
from benchmarks.paper.peak import is_grown, largest_batch
from benchmarks.paper.ways import DENSE, LEFT, LEFT_CHECKPOINTED, OURS, REBUILT

ORDER = (LEFT, LEFT_CHECKPOINTED, REBUILT, DENSE, *OURS)
CLAIMED = {"train": (1.6, 2.8), "inference": (1.1, 1.3)}
"""The paper's times faster than left to right, by mode."""
CLAIMED_BATCH = (2, 10)
"""The paper's times larger batches than left to right's, in training."""
NOISE = 0.03
"""A way that is slower by less is as fast."""
FAR = 0.05
"""Results that differ by more are said to. Where rounding moves one activation over a ReLU's edge, all gradients change
by up to some hundredths."""
BEATS = (REBUILT, LEFT)
"""What ce_fx must never be slower than; `<` marks where it is."""


def name_of(cell: Cell) -> str:
    """Such as `ResNet-34 rtt 5 % train`."""
    return f"{cell.workload} {cell.form} {cell.rate * 100:g} % {cell.mode}"


def batch_of(cell: Cell, name: str, budget: int) -> int | None:
    """The largest batch of a way that fits a budget."""
    return largest_batch(cell.batches, cell.peaks[name], budget) if name in cell.peaks else None


def table(cells: Sequence[Cell], budget: int) -> str:
    """A line for each way of each cell: time, times faster than the rivals, bytes, the largest batch in a budget.

    `<` is where ce_fx is slower than a rival that it must not be slower than. `~` is where what stays the same at any
    batch, such as weights and their gradients, is most of the bytes: the largest batch is then smaller than it seems.
    """
    lines = []
    for cell in cells:
        lines.append([f"{name_of(cell)}: {cell.layers} layers, {cell.where}{cell.error and ': ' + cell.error}"])
        lines += [_line(cell, name, budget) for name in ORDER if name in cell.rounds or name in cell.notes]
    headers = ["", "ms", "over left", "over rebuilt", "over dense", "MiB", f"batch in {budget / 2**30:g} GiB", ""]
    return tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True)


def _line(cell: Cell, name: str, budget: int) -> list[str]:
    note = cell.notes.get(name, "")
    if cell.errors.get(name, 0) > FAR:
        note = f"{note} results differ by {cell.errors[name]:.0e}".strip()
    if name not in cell.rounds:
        return [f"  {name}", "", "", "", "", "", "", note]
    ratios = [_ratio(cell, name, over) for over in (LEFT, REBUILT, DENSE)]
    batch = batch_of(cell, name, budget)
    shown = "-" if batch is None else f"{batch}{_doubt(cell, name)}"
    sizes = [f"{cell.peaks[name][1] / 2**20:.1f}", shown]
    return [f"  {name}", f"{cell.seconds(name) * 1e3:.1f}", *ratios, *sizes, note]


def _doubt(cell: Cell, *names: str) -> str:
    """A mark where the batches that were measured are too small to tell of larger ones."""
    return "" if all(is_grown(cell.batches, cell.peaks[name]) for name in names) else " ~"


def _ratio(cell: Cell, name: str, over: str) -> str:
    gain = cell.gain(name, over)
    if gain is None or name == over:
        return "-"
    return f"{gain:.2f}x" + " <" * (name in OURS and over in BEATS and gain < 1 - NOISE)


def claims(cells: Sequence[Cell], budget: int) -> str:
    """The paper's ratios over left to right beside ours: ce_fx by time, and the way of ce_fx that takes least bytes."""
    lines = []
    for cell in cells:
        if "ce_fx time" not in cell.rounds:
            continue
        batches = {name: batch for name in OURS if (batch := batch_of(cell, name, budget)) is not None}
        leanest = max(batches, key=lambda name: batches[name], default="")
        left, dense = batch_of(cell, LEFT, budget), cell.gain("ce_fx time", DENSE)
        larger = "-"
        if leanest and left:
            larger = f"{batches[leanest] / left:.1f}x ({leanest}){_doubt(cell, leanest, LEFT)}"
        lines.append(
            [
                name_of(cell),
                "{}-{}x".format(*CLAIMED[cell.mode]),
                _ratio(cell, "ce_fx time", LEFT),
                _ratio(cell, "ce_fx time", REBUILT),
                "{}-{}x".format(*CLAIMED_BATCH) if cell.mode == "train" else "-",
                larger,
                "" if dense is None else f"dense is faster, {1 / dense:.2f}x" if dense < 1 - NOISE else "no",
            ]
        )
    headers = ["", "paper: time", "over left", "over rebuilt", "paper: batch", "over left", "is dense faster?"]
    return tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True)
