"""The audit of a model: its layers, totals, and how they print."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from ce_fx.report.layer import LayerReport
from ce_fx.report.units import si, signed_ratio

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """What ce_fx did to a model, layer by layer.

    Attributes:
        layers: one `LayerReport` for each multilinear stretch, in graph order.
        title: what was audited: model, mode, dtype, device, inputs.
        objective: what was minimised.
        notes: lines about the model as a whole: graph breaks, attributes that were made plain.
    """

    layers: tuple[LayerReport, ...]
    title: str = ""
    objective: str = "time"
    notes: tuple[str, ...] = ()

    @property
    def flops_before(self) -> int:
        """FLOPs as written: multiply-adds counted as 2."""
        return sum(layer.flops_before for layer in self.layers)

    @property
    def flops_after(self) -> int:
        """FLOPs now: multiply-adds counted as 2."""
        return sum(layer.flops_after for layer in self.layers)

    @property
    def time_before(self) -> float | None:
        """Seconds as written, over the layers; None if one has none."""
        return _total([layer.time_before for layer in self.layers])

    @property
    def time_after(self) -> float | None:
        """Seconds now, over the layers; None if one has none."""
        return _total([layer.time_after for layer in self.layers])

    @property
    def mismatches(self) -> int:
        """Regions that verification took back: 0 unless ce_fx has a bug."""
        return sum(layer.mismatch for layer in self.layers)

    def count(self, decision: str) -> int:
        """The number of layers with a decision."""
        return sum(layer.decision == decision for layer in self.layers)

    def summary(self) -> str:
        """One line: what happened."""
        if not self.layers:
            return "nothing to rewrite: no multilinear layer was found"
        rewritten = self.count("rewritten")
        if not rewritten:
            return f"nothing to rewrite: {self.layers[0].reason if len(self.layers) == 1 else _common_reason(self)}"
        gain = signed_ratio(self.flops_before, self.flops_after)
        return f"{rewritten} of {len(self.layers)} layers rewritten, {gain} FLOPs"

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able; FLOPs are exact integers."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "objective": self.objective,
            "flops_before": self.flops_before,
            "flops_after": self.flops_after,
            "time_before": self.time_before,
            "time_after": self.time_after,
            "mismatches": self.mismatches,
            "notes": list(self.notes),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """The table, with totals, units and the reason of every decision."""
        head = [f"ce_fx audit: {self.title}"] if self.title else []
        units = "1 multiply-add = 2 FLOPs. Times: m = measured here, p = predicted."
        head.append(f"{units}   objective: {self.objective}")
        columns = ["layer", "kind", "FLOPs", "now", "gain", "time", "now", "gain", "temp", "decision"]
        rows = _rows(self.layers)
        total = [
            f"total ({len(self.layers)} layers)",
            "",
            si(self.flops_before),
            si(self.flops_after),
            _ratio(self.flops_before, self.flops_after),
            _seconds(self.time_before, ""),
            _seconds(self.time_after, ""),
            _ratio(self.time_before, self.time_after),
            "",
            ", ".join(f"{self.count(d)} {d}" for d in ("rewritten", "kept", "refused")),
        ]
        align = ("left", "left", "right", "right", "right", "right", "right", "right", "left", "left")
        table = tabulate([*rows, total], headers=columns, tablefmt="plain", colalign=align, disable_numparse=True)
        return "\n".join([*head, "", table, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.to_text()


def _rows(layers: tuple[LayerReport, ...]) -> list[list[str]]:
    seen: dict[tuple[object, ...], str] = {}
    rows = []
    for layer in layers:
        key = (layer.expression, layer.plan, layer.flops_before, layer.flops_after, layer.decision)
        twin = seen.setdefault(key, layer.name)
        decision = f"{layer.decision}: {layer.reason}"
        if layer.decision == "rewritten" and twin != layer.name:
            decision = f"rewritten (same plan as {twin})"
        mark = "m" if layer.measured else "p"
        rows.append(
            [
                layer.name,
                layer.kind,
                si(layer.flops_before),
                si(layer.flops_after),
                _ratio(layer.flops_before, layer.flops_after),
                _seconds(layer.time_before, mark),
                _seconds(layer.time_after, mark),
                _ratio(layer.time_before, layer.time_after),
                f"{si(layer.peak_before, 2)}B -> {si(layer.peak_after, 2)}B",
                decision,
            ]
        )
    return rows


def _total(times: list[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) if times and len(known) == len(times) else None


def _seconds(time: float | None, mark: str) -> str:
    return "-" if time is None else f"{time * 1e3:.3g} ms {mark}".rstrip()


def _ratio(before: float | None, after: float | None) -> str:
    return f"{before / after:.1f}x" if before and after else "-"


def _common_reason(report: Report) -> str:
    reasons = [layer.reason for layer in report.layers]
    return max(dict.fromkeys(reasons), key=reasons.count)
