"""What was decided for one layer, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ce_fx.report.product import Product

DECISIONS = ("rewritten", "kept", "refused")


@dataclass(frozen=True)
class LayerReport:
    """One multilinear stretch of the model.

    Attributes:
        name: module path as the user wrote it.
        expression: its conv_einsum string, or "" where there is none.
        decision: "rewritten", "kept" or "refused".
        reason: one plain sentence.
        flops_before, flops_after: multiply-adds counted as 2, forward, plus backward when training; None where they
            could not be counted.
        peak_before, peak_after: bytes of the largest intermediate (the result included); None where not known.
        time_before, time_after: seconds, predicted (`measured` says otherwise), or None.
        plan: the pairwise steps, as strings.
        kind: class of the module, with its geometry.
        mismatch: verification found another result, so the original was kept.
        measured: the times were measured.
        can_change: there is more than one order of evaluation: the rows that a speed-up can come from.
        forward_flops_before, forward_flops_after: the part of the FLOPs that is forward; None outside training, where
            all are.
        forward_time_before, forward_time_after: the same of the seconds. Of measured times the sum is what was
            measured, and it is split as predicted.
        foldable_flops, foldable_time: FLOPs and predicted seconds, of what runs now, of steps on weights only, which
            `fold=True` would take out of every call; None where there are none.
        written: the ops as written, such as "conv2d 64->26".
        terms: the products as lifted; of a rewritten layer only.
        products: the products as they run, each with its steps; of a rewritten layer only.
    """

    name: str
    expression: str
    decision: str
    reason: str
    flops_before: int | None
    flops_after: int | None
    peak_before: int | None
    peak_after: int | None
    time_before: float | None = None
    time_after: float | None = None
    plan: tuple[str, ...] = field(default=())
    kind: str = ""
    mismatch: bool = False
    measured: bool = False
    can_change: bool = False
    forward_flops_before: int | None = None
    forward_flops_after: int | None = None
    forward_time_before: float | None = None
    forward_time_after: float | None = None
    foldable_flops: int | None = None
    foldable_time: float | None = None
    written: tuple[str, ...] = ()
    terms: tuple[Product, ...] = ()
    products: tuple[Product, ...] = ()

    @property
    def mark(self) -> str:
        """How its times are known: "m" for measured, "p" for predicted."""
        return "m" if self.measured else "p"

    @property
    def key(self) -> object:
        """Equal for layers of one plan, with the same numbers."""
        return self.expression, self.plan, self.flops_before, self.flops_after, self.decision

    def forward(self) -> LayerReport:
        """The forward part of a row that counts forward and backward."""
        return replace(self, **{name: getattr(self, f"forward_{name}") for name in _PARTED})

    def backward(self) -> LayerReport:
        """What is left of the row without its forward part."""
        return replace(self, **{n: _less(getattr(self, n), getattr(self, f"forward_{n}")) for n in _PARTED})

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

    def taken_back(self, reason: str) -> LayerReport:
        """A rewrite that does not run after all; other decisions as they are."""
        if self.decision != "rewritten":
            return self
        return replace(
            self,
            decision="kept",
            reason=reason,
            plan=(),
            terms=(),
            products=(),
            flops_after=self.flops_before,
            peak_after=self.peak_before,
            time_after=self.time_before,
            forward_flops_after=self.forward_flops_before,
            forward_time_after=self.forward_time_before,
            foldable_flops=None,
            foldable_time=None,
        )


_PARTED = ("flops_before", "flops_after", "time_before", "time_after")
"""The numbers whose forward part a row has, too."""


def _plain(value: Any) -> Any:
    """The value with lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _less(whole: Any, part: Any) -> Any:
    return None if whole is None or part is None else whole - part
