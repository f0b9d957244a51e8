"""A report as Markdown and as CSV: all columns."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ce_fx.report.facts import facts_of, head_of
from ce_fx.report.layer import LayerReport
from ce_fx.report.lines import lines_of
from ce_fx.report.text import COLUMNS, totals_of

if TYPE_CHECKING:
    from ce_fx.report.report import Report

FIELDS = (
    "name",
    "kind",
    "decision",
    "reason",
    "flops_before",
    "flops_after",
    "forward_flops_before",
    "forward_flops_after",
    "time_before",
    "time_after",
    "forward_time_before",
    "forward_time_after",
    "measured",
    "peak_before",
    "peak_after",
    "can_change",
    "foldable_flops",
    "foldable_time",
    "mismatch",
    "expression",
    "plan",
    "written",
)
"""Columns of the CSV behind the schema; lists are joined by semicolons, what is not known is empty."""


def csv_of(report: Report) -> str:
    """See `Report.to_csv`."""
    from ce_fx.report.report import SCHEMA

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["schema", *FIELDS])
    writer.writerows([SCHEMA, *(_field(layer, name) for name in FIELDS)] for layer in report.layers)
    return out.getvalue()


def _field(layer: LayerReport, name: str) -> Any:
    value = getattr(layer, name)
    if isinstance(value, tuple):
        return "; ".join(value)
    return repr(value) if isinstance(value, float) else value  # repr is exact


def markdown_of(report: Report) -> str:
    """See `Report.to_markdown`."""
    lines = lines_of(report.layers, report.objective, full=True)
    rows = [[_escaped(column.cell(line)) for column in COLUMNS.values()] for line in lines]
    ends = [[_escaped(column.cell(line)) for column in COLUMNS.values()] for line in totals_of(report)]
    bold = [[f"**{cell}**" if cell else "" for cell in row] for row in ends]
    table = tabulate(
        [*rows, *bold],
        headers=[column.heading for column in COLUMNS.values()],
        tablefmt="pipe",
        colalign=[column.align for column in COLUMNS.values()],
        disable_numparse=True,
    )
    title, *units = [_escaped(line) for line in head_of(report)]
    head = [f"**{title}**", *units] if units else [title]
    facts = [f"- {_escaped(fact)}" for fact in facts_of(report)]
    return "\n\n".join([*head, *([table] if rows else []), "\n".join(facts)]) + "\n"


_MARKUP = {ord(sign): f"\\{sign}" for sign in "\\`*_[]<>|~#"} | {ord("&"): "&amp;"}
"""Signs that Markdown, or HTML within it, would take for its own."""


def _escaped(text: str) -> str:
    return " ".join(text.translate(_MARKUP).split())
