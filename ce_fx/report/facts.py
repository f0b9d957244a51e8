"""What is to be known about a report beside its rows, as one sentence each; every form of a report tells the same."""

from __future__ import annotations

from math import isinf
from typing import TYPE_CHECKING

from ce_fx.report.lines import total
from ce_fx.report.units import number_of, percent, seconds

if TYPE_CHECKING:
    from ce_fx.report.report import Report

UNITS = "1 multiply-add = 2 FLOPs. Times: m = measured here, p = predicted."


def head_of(report: Report) -> list[str]:
    """What was audited, and the units."""
    title = [f"ce_fx audit: {report.title}"] if report.title else []
    return [*title, f"{UNITS}   objective: {report.objective}"]


def facts_of(report: Report) -> list[str]:
    """Coverage, what could not be counted, what is no layer, what was refused, and the notes, in this order."""
    if not report.layers:
        return [_nothing(report), *_no_layers(report), *_notes(report)]
    parts = (_split, _coverage, _foldable, _uncounted, _no_layers, _refused, _notes)
    return [line for part in parts for line in part(report)]


def _nothing(report: Report) -> str:
    """What is said in place of a table."""
    from ce_fx.report.report import NOTHING, UNCALLED

    if not report.captured:
        return UNCALLED
    return NOTHING if report.elsewhere else f"{NOTHING}, and nothing else that takes time"


def _split(report: Report) -> list[str]:
    """How the times of forward and backward are known."""
    if not report.training or not any(layer.measured for layer in report.layers):
        return []
    return ["forward and backward were measured together; their sum is split as predicted"]


def _coverage(report: Report) -> list[str]:
    """How much of the model the rows that can change are, and what that allows (Amdahl's law)."""
    flexible = [layer for layer in report.layers if layer.can_change]
    if len(report.uncounted) == len(report.layers):
        return []
    if not flexible:
        return ["coverage: no row can change, each has one order of evaluation"]
    rows = f"the {len(flexible)} rows" if len(flexible) > 1 else "the one row"
    flops = percent(total(layer.flops_before for layer in flexible), report.flops_before)
    inside, elsewhere = report.time_before, report.time_elsewhere
    if inside is None or elsewhere is None or report.best_speedup is None:
        return [f"coverage: {flops} of FLOPs are in {rows} that can change"]
    time = percent(total(layer.time_before for layer in flexible), inside + elsewhere)
    counted = " that was counted" if report.uncounted else ""
    limit = _limit(report.best_speedup, counted)
    return [f"coverage: {flops} of FLOPs and {time} of time{counted} are in {rows} that can change; {limit}"]


def _limit(speedup: float, counted: str = "") -> str:
    """The speed-up that the rest of the model leaves room for; above 100x a figure says no more than its smallness."""
    if isinf(speedup):
        return f"nothing else{counted} takes time"
    if speedup > _NO_LIMIT:
        return f"the rest of the model{counted} takes under {1 / _NO_LIMIT:.0%} of the time"
    return f"best possible speed-up from them: {speedup:.1f}x"


_NO_LIMIT = 100
"""Times faster that a model could be, from which on its other parts are no matter."""


def _foldable(report: Report) -> list[str]:
    """What `fold=True` would gain."""
    rows = [layer for layer in report.layers if layer.foldable_time]
    if not rows:
        return []
    count = f"{len(rows)} rows have" if len(rows) > 1 else "one row has"
    flops = number_of(total(layer.foldable_flops for layer in rows))
    time = seconds(total(layer.foldable_time for layer in rows), "p")
    return [f"fold: {count} steps on weights only; fold=True, for serving, would save {flops} FLOPs and {time} a call"]


def _uncounted(report: Report) -> list[str]:
    """The rows with a question mark."""
    names = ", ".join(layer.name for layer in report.uncounted)
    return [f"?: not counted, and in no total: {names}"] if names else []


def _no_layers(report: Report) -> list[str]:
    """The ops without multiply-adds, with what they cost all the same."""
    if not report.elsewhere:
        return []
    ops = ", ".join(f"{one.op} {one.count}" for one in sorted(report.elsewhere, key=lambda one: -one.bytes))
    moved = percent(sum(one.bytes for one in report.elsewhere), report.bytes)
    time = "" if report.time_elsewhere is None else f", {seconds(report.time_elsewhere, 'p')}"
    return [f"not counted: {ops} (elementwise, pools and copies; {moved} of bytes moved{time})"]


def _refused(report: Report) -> list[str]:
    """The reasons in full, each with the layers that it is of."""
    reasons: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.decision == "refused":
            reasons.setdefault(layer.reason, []).append(layer.name)
    return [f"refused: {_some(list(dict.fromkeys(names)))} - {reason}" for reason, names in reasons.items()]


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _notes(report: Report) -> list[str]:
    return [f"note: {note}" for note in report.notes]
