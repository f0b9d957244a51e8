"""A report as a page: one self-contained HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ce_fx.report.report import Report


def page_of(report: Report) -> str:
    """See `Report.to_html`."""
    import html

    return f"<!doctype html><title>ce_fx</title><pre>{html.escape(report.to_text(width=120))}</pre>"


def fragment_of(report: Report) -> str:
    """The table alone, for a notebook."""
    return page_of(report)
