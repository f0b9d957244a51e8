"""A report as text: the table, its totals, and what is to be known about them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tabulate import tabulate

from ce_fx.report.facts import facts_of, head_of
from ce_fx.report.lines import Line, decisions, lines_of
from ce_fx.report.plans import plans_of
from ce_fx.report.units import ratio, seconds, span

if TYPE_CHECKING:
    from ce_fx.report.report import Report

WIDTH = 120
_LEAST = 24  # columns that the decision is given, by leaving others out


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, how it is aligned, and what stands in it."""

    heading: str
    align: str
    cell: Callable[[Line], str]


COLUMNS = {
    "layer": Column("layer", "left", lambda line: line.name),
    "kind": Column("kind", "left", lambda line: line.kind),
    "flops": Column("FLOPs ->", "right", lambda line: line.work[0]),
    "flops now": Column("now", "right", lambda line: line.work[1]),
    "flops gain": Column("gain", "right", lambda line: ratio(*line.flops)),
    "time": Column("time ->", "right", lambda line: seconds(line.seconds[0], line.mark)),
    "time now": Column("now", "right", lambda line: seconds(line.seconds[1], line.mark)),
    "time gain": Column("gain", "right", lambda line: ratio(*line.seconds)),
    "temp": Column("temp", "left", lambda line: span(*line.peaks)),
    "decision": Column("decision", "left", lambda line: line.decision),
}
DROPPED = ("kind", "temp")
"""What a narrow table does without, in this order."""


def text_of(
    report: Report, sort: str, depth: int | None, min_gain: float | None, plans: bool, width: int | None
) -> str:
    """See `Report.to_text`."""
    if width is None:
        width = shutil.get_terminal_size((WIDTH, 24)).columns
    if width < 1:
        raise ValueError(f"width must be at least 1, not {width}")
    lines = lines_of(report.layers, report.objective, sort, depth, min_gain)
    parts = [_filled(head_of(report), width), ""]
    if lines:
        parts += [_table([*lines, *totals_of(report)], width)]
    parts += [_filled(facts_of(report), width)]
    if plans:
        parts += ["", plans_of(report)]
    return "\n".join(parts)


def totals_of(report: Report) -> list[Line]:
    """The last row; when training, two rows before it that add up to it."""
    layers = report.layers
    rows = []
    if report.training:
        rows.append(Line("forward", "", "", tuple(layer.forward() for layer in layers)))
        rows.append(Line("backward", "", "", tuple(layer.backward() for layer in layers)))
    what = f"total ({len(layers)} layer{'s' if len(layers) != 1 else ''})"
    return [*rows, Line(what, "", decisions(layers, every=True), layers)]


def _table(lines: Sequence[Line], width: int) -> str:
    """The table: without some columns where it would be too wide, and with its last one wrapped."""
    cells = {name: [column.cell(line) for line in lines] for name, column in COLUMNS.items()}
    widths = {name: max(map(len, [COLUMNS[name].heading, *column])) for name, column in cells.items()}
    needed = min(widths["decision"], _LEAST)
    for name in DROPPED:
        if _width({**widths, "decision": needed}) > width:
            del cells[name], widths[name]
    room = max(_LEAST, width - _width({**widths, "decision": 0}))
    cells["decision"] = [textwrap.fill(text, room) for text in cells["decision"]]
    columns = [COLUMNS[name] for name in cells]
    return tabulate(  # the headings are a row: as headings they would be padded
        [[column.heading for column in columns], *zip(*cells.values(), strict=True)],
        tablefmt="plain",
        colalign=[column.align for column in columns],
        disable_numparse=True,
    )


def _width(widths: dict[str, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)


def _filled(lines: Sequence[str], width: int) -> str:
    """Lines wrapped to a width; names that are longer stay whole."""
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )
