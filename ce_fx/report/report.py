"""The audit of a model: its layers and totals, and the forms in which it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ce_fx.report.graph import Elsewhere
from ce_fx.report.layer import LayerReport
from ce_fx.report.lines import total
from ce_fx.report.units import signed_ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "no multilinear layer was found"
UNCALLED = "not captured yet: call the model first"
"""What is said where there are no rows."""

SCHEMA = 2
"""Of `to_dict`, `to_json` and `to_csv`: raised when a field changes its meaning or goes."""


@dataclass(frozen=True)
class Report:
    """What ce_fx did to a model, layer by layer. `print(report)` prints the table.

    Attributes:
        layers: one `LayerReport` for each multilinear stretch, in graph order.
        title: what was audited: model, mode, dtype, device, threads, inputs.
        objective: what was minimised.
        notes: lines about the model as a whole: graph breaks, attributes that were made plain.
        elsewhere: the ops that no layer holds, by name.
        bytes: read and written by all ops as written, in one forward.
        captured: False before the first call of an optimised model: there is nothing to report yet.
        about: what was audited, by name, as plain data: "model", "mode", "dtype", "device", "threads", "inputs".
    """

    layers: tuple[LayerReport, ...]
    title: str = ""
    objective: str = "time"
    notes: tuple[str, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    bytes: int = 0
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)
    captured: bool = True

    @property
    def flops_before(self) -> int:
        """FLOPs as written: multiply-adds counted as 2, of the layers that could be counted (see `uncounted`)."""
        return total(layer.flops_before for layer in self.layers) or 0

    @property
    def flops_after(self) -> int:
        """FLOPs now: multiply-adds counted as 2, of the layers that could be counted (see `uncounted`)."""
        return total(layer.flops_after for layer in self.layers) or 0

    @property
    def time_before(self) -> float | None:
        """Seconds as written, over the layers that have one; None if none has."""
        return total(layer.time_before for layer in self.layers)

    @property
    def time_after(self) -> float | None:
        """Seconds now, over the layers that have one; None if none has."""
        return total(layer.time_after for layer in self.layers)

    @property
    def uncounted(self) -> tuple[LayerReport, ...]:
        """The layers whose FLOPs could not be counted; they are in no total."""
        return tuple(layer for layer in self.layers if layer.flops_before is None)

    @property
    def training(self) -> bool:
        """Forward and backward are counted."""
        return any(layer.forward_flops_before is not None for layer in self.layers)

    @property
    def time_elsewhere(self) -> float | None:
        """Predicted seconds of what no layer holds; None where it is not known."""
        times = [one.seconds for one in self.elsewhere]
        return None if None in times else sum(time for time in times if time is not None)

    @property
    def best_speedup(self) -> float | None:
        """The speed-up of the whole model if the layers that can change took no time (Amdahl); None if not known.

        Infinite where nothing else takes time.
        """
        elsewhere, inside = self.time_elsewhere, self.time_before
        if elsewhere is None or inside is None:
            return None
        rest = elsewhere + inside - (total(one.time_before for one in self.layers if one.can_change) or 0.0)
        return (elsewhere + inside) / rest if rest > 0 else float("inf")

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
            return f"nothing to rewrite: {NOTHING}" if self.captured else UNCALLED
        rewritten = self.count("rewritten")
        if not rewritten:
            return f"nothing to rewrite: {self.layers[0].reason if len(self.layers) == 1 else _common_reason(self)}"
        gain = signed_ratio(self.flops_before, self.flops_after)
        return f"{rewritten} of {len(self.layers)} layers rewritten, {gain} FLOPs"

    def to_dict(self) -> dict[str, Any]:
        """All data, JSON-able: what follows from it, such as `best_speedup`, is left out.

        FLOPs and bytes are exact integers, times are seconds.
        """
        return {
            "schema": SCHEMA,
            "title": self.title,
            "about": dict(self.about),
            "objective": self.objective,
            "captured": self.captured,
            "training": self.training,
            "flops_before": self.flops_before,
            "flops_after": self.flops_after,
            "time_before": self.time_before,
            "time_after": self.time_after,
            "time_elsewhere": self.time_elsewhere,
            "mismatches": self.mismatches,
            "uncounted": [layer.name for layer in self.uncounted],
            "notes": list(self.notes),
            "bytes": self.bytes,
            "elsewhere": [one.to_dict() for one in self.elsewhere],
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(
        self,
        sort: str = "graph",
        depth: int | None = None,
        min_gain: float | None = None,
        plans: bool = False,
        width: int | None = None,
    ) -> str:
        """The table, with totals, units and the reason of every decision.

        Args:
            sort: "graph" as the model runs, "gain" and "time" the largest first, "name" by module path.
            depth: layers below this module depth become one row for each module; 1 is the model's children.
            min_gain: layers with a smaller gain (of the objective) become one row.
            plans: also every plan: string, sizes, and steps with their FLOPs.
            width: columns to fill; None for the terminal's, or 120 where there is none. Where the table does not fit,
                `kind` is left out first, then `temp`, then the last column is wrapped.

        Raises:
            ValueError: `sort` is no such word, or a number makes no sense.
        """
        from ce_fx.report.text import text_of

        return text_of(self, sort, depth, min_gain, plans, width)

    def to_markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, with all columns, totals and notes."""
        from ce_fx.report.tables import markdown_of

        return markdown_of(self)

    def to_csv(self) -> str:
        """One record for each layer with all fields: exact integers, seconds. The first column is the schema."""
        from ce_fx.report.tables import csv_of

        return csv_of(self)

    def to_html(self) -> str:
        """One self-contained page: sortable table, totals, drawings of every rewritten layer. No network is used."""
        from ce_fx.report.page import page_of

        return page_of(self)

    def plot(self) -> Figure:
        """FLOPs and time before and after, by layer, as a matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed (`pip install ce_fx[plot]`).
        """
        from ce_fx.report.plot import plot_of

        return plot_of(self)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        from ce_fx.report.page import fragment_of

        return fragment_of(self)


def _common_reason(report: Report) -> str:
    reasons = [layer.reason for layer in report.layers]
    return max(dict.fromkeys(reasons), key=reasons.count)
