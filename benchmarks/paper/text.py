"""The tables: every way of every cell, and what the paper claims beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from benchmarks.paper.cells import Cell
from benchmarks.paper.peak import is_grown, largest_batch
from benchmarks.paper.ways import BY_INDUCTOR, DENSE, LEFT, LEFT_CHECKPOINTED, OURS, OURS_BY_INDUCTOR, REBUILT

ORDER = (LEFT, LEFT_CHECKPOINTED, REBUILT, DENSE, *BY_INDUCTOR, *OURS)
CLAIMED = {"train": (1.6, 2.8), "inference": (1.1, 1.3)}
"""The paper's times faster than left to right, by mode."""
CLAIMED_BATCH = (2, 10)
"""The paper's times larger batches than left to right's, in training."""
NOISE = 0.03
"""A way that is slower by less is as fast."""
FAR = 0.05
"""Results that differ by more are said to. Where rounding moves one activation over a ReLU's edge, all gradients change
by up to some hundredths."""
TIMED = "ce_fx time"
"""The way of ce_fx whose time is beside the paper's."""
BEATS = (REBUILT, LEFT)
"""What ce_fx must never be slower than; `<` marks where it is."""


def name_of(cell: Cell) -> str:
    """Such as `ResNet-34 rtt 5 % train`."""
    return f"{cell.workload} {cell.form} {cell.rate * 100:g} % {cell.mode}"


def batch_of(cell: Cell, name: str, budget: int) -> int | None:
    """The largest batch of a way that fits a budget."""
    return largest_batch(cell.peaks[name], budget) if name in cell.peaks else None


def table(cells: Sequence[Cell], budget: int) -> str:
    """A line for each way of each cell: time, times faster than the rivals, bytes, the largest batch in a budget.

    `<` is where ce_fx is slower than a rival that it must not be slower than; the last lines count them. `~` is where
    what stays the same at any batch, such as weights and their gradients, is most of the bytes: the largest batch is
    then smaller than it seems.
    """
    lines = []
    for cell in cells:
        lines.append([f"{name_of(cell)}: {cell.layers} layers, {cell.where}{cell.error and ': ' + cell.error}"])
        lines += [_line(cell, name, budget) for name in ORDER if name in cell.rounds or name in cell.notes]
    headers = ["", "ms", "over left", "over rebuilt", "over dense", "MiB", f"batch in {budget / 2**30:g} GiB", ""]
    shown = tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True)
    behind = [f"ce_fx behind {over}: {_short(_gains(cells, OURS, over), 1 - NOISE)}" for over in BEATS]
    return "\n".join([shown, *behind])


def _gains(cells: Sequence[Cell], ways: Iterable[str], over: str) -> list[tuple[float, str]]:
    """How many times faster some ways are than another, with what was measured."""
    found = [(cell.gain(name, over), f"{name_of(cell)}, {name}") for cell in cells for name in ways]
    return [(gain, what) for gain, what in found if gain is not None]


def _short(gains: Sequence[tuple[float, str]], least: float) -> str:
    """How many ratios are below the least that they should be, and the worst of all: `2 of 9, worst 0.91x (..)`."""
    if not gains:
        return "not measured"
    worst, what = min(gains)
    return f"{sum(gain < least for gain, _ in gains)} of {len(gains)}, worst {worst:.2f}x ({what})"


def _line(cell: Cell, name: str, budget: int) -> list[str]:
    note = cell.notes.get(name, "")
    if cell.errors.get(name, 0) > FAR:
        note = f"{note} results differ by {cell.errors[name]:.0e}".strip()
    sizes = ["", ""]
    if name in cell.peaks:
        batch = batch_of(cell, name, budget)
        shown = "-" if batch is None else f"{batch}{_doubt(cell, name)}"
        sizes = [f"{cell.peaks[name][-1][1] / 2**20:.1f}", shown]
    if name not in cell.rounds:
        return [f"  {name}", "", "", "", "", *sizes, note]
    if name == OURS_BY_INDUCTOR:  # what it must be compared with is compiled, too
        rivals = [(gain, over) for over in BY_INDUCTOR if (gain := cell.gain(name, over)) is not None]
        note = ", ".join([note, *(f"{gain:.2f}x over {over}" for gain, over in rivals)])
    ratios = [_ratio(cell, name, over) for over in (LEFT, REBUILT, DENSE)]
    return [f"  {name}", f"{cell.seconds(name) * 1e3:.1f}", *ratios, *sizes, note]


def _doubt(cell: Cell, *names: str) -> str:
    """A mark where the batches that were measured are too small to tell of larger ones."""
    return "" if all(is_grown(cell.peaks[name]) for name in names) else " ~"


def _ratio(cell: Cell, name: str, over: str) -> str:
    gain = cell.gain(name, over)
    if gain is None or name == over:
        return "-"
    return f"{gain:.2f}x" + " <" * (name in OURS and over in BEATS and gain < 1 - NOISE)


def claims(cells: Sequence[Cell], budget: int) -> str:
    """The paper's ratios over left to right beside ours: ce_fx by time, and the way of ce_fx that takes least bytes.

    The last lines count where ce_fx is behind, and where it is not as far ahead as the paper claims to be.
    """
    cells = [cell for cell in cells if TIMED in cell.rounds]
    lines = []
    for cell in cells:
        dense = cell.gain(TIMED, DENSE)
        lines.append(
            [
                name_of(cell),
                "{}-{}x".format(*CLAIMED[cell.mode]),
                _ratio(cell, TIMED, LEFT),
                _ratio(cell, TIMED, REBUILT),
                "{}-{}x".format(*CLAIMED_BATCH) if cell.mode == "train" else "-",
                _larger(cell, LEFT, budget),
                _larger(cell, LEFT_CHECKPOINTED, budget),
                "" if dense is None else f"dense is faster, {1 / dense:.2f}x" if dense < 1 - NOISE else "no",
            ]
        )
    times = ["", "paper: time", "over left", "over rebuilt"]
    headers = [*times, "paper: batch", "over left", "over left, checkpointed", "is dense faster?"]
    shown = tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True)
    return "\n".join([shown, *_summary(cells, budget)])


def _summary(cells: Sequence[Cell], budget: int) -> list[str]:
    """How many cells fall short of each rival and of each claim, by mode."""
    lines = []
    for mode, claimed in CLAIMED.items():
        those = [cell for cell in cells if cell.mode == mode]
        if not those:
            continue
        over = {rival: _gains(those, [TIMED], rival) for rival in BEATS}
        parts = [f"behind {rival}: {_short(gains, 1 - NOISE)}" for rival, gains in over.items()]
        parts += [f"below {least}x over left: {_short(over[LEFT], least)}" for least in claimed]
        if mode == "train":
            for rival, bounds in ((LEFT, CLAIMED_BATCH), (LEFT_CHECKPOINTED, (1,))):
                found = [(_times_larger(cell, rival, budget), name_of(cell)) for cell in those]
                larger = [(one[0], what) for one, what in found if one]
                parts += [f"batch below {least}x that of {rival}: {_short(larger, least)}" for least in bounds]
        lines += [f"{mode}: {part}" for part in parts]
    return lines


def _times_larger(cell: Cell, over: str, budget: int) -> tuple[float, str] | None:
    """How many times larger the largest batch of ce_fx is than another way's, and by which way of ce_fx."""
    batches = {name: batch for name in OURS if (batch := batch_of(cell, name, budget)) is not None}
    rival = batch_of(cell, over, budget)
    if not batches or not rival:
        return None
    leanest = max(batches, key=batches.__getitem__)
    return batches[leanest] / rival, leanest


def _larger(cell: Cell, over: str, budget: int) -> str:
    found = _times_larger(cell, over, budget)
    return "-" if found is None else f"{found[0]:.1f}x ({found[1]}){_doubt(cell, found[1], over)}"
