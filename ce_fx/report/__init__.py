"""Reports: what was decided and why, as data and as text."""

from ce_fx.report.layer import LayerReport
from ce_fx.report.report import Report

__all__ = ["LayerReport", "Report"]
