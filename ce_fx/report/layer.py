"""What was decided for one layer, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

DECISIONS = ("rewritten", "kept", "refused")


@dataclass(frozen=True)
class LayerReport:
    """One multilinear stretch of the model.

    Attributes:
        name: module path as the user wrote it.
        expression: its conv_einsum string, or "" where there is none.
        decision: "rewritten", "kept" or "refused".
        reason: one plain sentence.
        flops_before, flops_after: multiply-adds counted as 2, forward, plus backward when training.
        peak_before, peak_after: bytes of the largest intermediate (the result included).
        time_before, time_after: seconds, predicted (`measured` says otherwise), or None.
        plan: the pairwise steps, as strings.
        kind: class of the module, with its geometry.
        mismatch: verification found another result, so the original was kept.
        measured: the times were measured.
    """

    name: str
    expression: str
    decision: str
    reason: str
    flops_before: int
    flops_after: int
    peak_before: int
    peak_after: int
    time_before: float | None = None
    time_after: float | None = None
    plan: tuple[str, ...] = field(default=())
    kind: str = ""
    mismatch: bool = False
    measured: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return {**asdict(self), "plan": list(self.plan)}

    def taken_back(self, reason: str) -> LayerReport:
        """A rewrite that does not run after all; other decisions as they are."""
        if self.decision != "rewritten":
            return self
        kept = replace(self, decision="kept", reason=reason, plan=())
        return replace(kept, flops_after=self.flops_before, peak_after=self.peak_before, time_after=self.time_before)
