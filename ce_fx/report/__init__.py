"""Reports: what was decided and why, as data, as text, as a page and as a plot."""

from ce_fx.report.graph import Elsewhere, GraphReport
from ce_fx.report.layer import LayerReport
from ce_fx.report.report import Report

__all__ = ["Elsewhere", "GraphReport", "LayerReport", "Report"]
