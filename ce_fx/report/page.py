"""A report as a page: one self-contained HTML file, or its table alone for a notebook.

The template escapes whatever it is given; the drawings, the style sheet and the script are made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from ce_fx.report.drawing import bar, network, tree
from ce_fx.report.facts import facts_of, head_of
from ce_fx.report.layer import LayerReport
from ce_fx.report.lines import Line, decisions, lines_of
from ce_fx.report.plans import counted, groups_of, why_not_dense
from ce_fx.report.product import Product
from ce_fx.report.text import totals_of
from ce_fx.report.units import memory, number_of, ratio, seconds

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

    from ce_fx.report.report import Report

_MOST = 8
"""Products that are drawn of one plan; a long sum has dozens."""


def page_of(report: Report) -> str:
    """See `Report.to_html`."""
    return _render(report, fragment=False)


def fragment_of(report: Report) -> str:
    """The table with its totals and facts, styled, without a script and without drawings."""
    return _render(report, fragment=True)


def _render(report: Report, fragment: bool) -> str:
    from markupsafe import Markup

    style, script = (Markup(_asset(name)) for name in ("page.css", "page.js"))
    view = _view(report, drawn=not fragment)
    text = _template().render(view=view, fragment=fragment, css=style, js=script, version=metadata.version("ce_fx"))
    return f"{text.strip()}\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["in_parts"] = _in_parts
    return environment.from_string(_asset("page.html.jinja"))


_DOT = re.compile(r"\.(?!\d)|(?<!\d)\.")
"""A dot of a module path, not of a number."""


def _in_parts(text: str) -> Markup:
    """A text whose module paths may break behind their dots."""
    from markupsafe import Markup, escape

    return Markup(_DOT.sub(".<wbr>", str(escape(text))))


def _asset(name: str) -> str:
    return resources.files("ce_fx.report").joinpath(name).read_text(encoding="utf-8")


_COLUMNS = (
    ("layer", "layer", False),
    ("kind", "kind", False),
    ("FLOPs", "FLOPs as written", True),
    ("now", "FLOPs now", True),
    ("gain", "gain in FLOPs", True),
    ("time", "time as written", True),
    ("now", "time now", True),
    ("gain", "gain in time", True),
    ("temp", "largest intermediate as written", True),
    ("now", "largest intermediate now", True),
    ("decision", "decision", False),
)
"""Heading, full name, and whether it is a number."""


def _view(report: Report, drawn: bool) -> dict[str, Any]:
    """All that the template shows."""
    groups = groups_of(report.layers)
    ids = {layer.name: f"plan-{n}" for n, layers in enumerate(groups, 1) for layer in layers}
    lines = lines_of(report.layers, report.objective, full=True)
    most = [max([value or 0 for line in lines for value in pair(line)], default=0) for pair in _PAIRS]
    return {
        "title": f"ce_fx audit: {report.title}" if report.title else "ce_fx audit",
        "head": head_of(report),
        "columns": [{"heading": a, "name": b, "number": c} for a, b, c in _COLUMNS],
        "rows": [
            {
                "cells": _cells(line, most),
                "decision": line.layers[0].decision if len(line.layers) == 1 else "",
                "link": ids.get(line.name) if line.layers[0].decision == "rewritten" else None,
            }
            for line in lines
        ],
        "totals": [{"cells": _cells(line, [0, 0, 0])} for line in totals_of(report)],
        "facts": facts_of(report),
        "cards": [*_cards(report.layers), _counts(report)],
        "plans": [_plan(f"plan-{n}", layers) for n, layers in enumerate(groups, 1)] if drawn else [],
    }


_PAIRS: tuple[Callable[[Line], tuple[Any, Any]], ...] = (
    lambda line: line.flops,
    lambda line: line.seconds,
    lambda line: line.peaks,
)


def _cells(line: Line, most: Sequence[float]) -> list[dict[str, Any]]:
    """The cells of a row: what they show, what they are sorted by, and their share of the largest row."""
    cells = [_cell(line.name, line.name), _cell(line.kind, line.kind)]
    texts = line.work, [seconds(time, line.mark) for time in line.seconds], [memory(peak) for peak in line.peaks]
    for place, (pair, shown) in enumerate(zip(_PAIRS, texts, strict=True)):
        for value, text, when in zip(pair(line), shown, ("was", "is"), strict=True):
            share = round(value / most[place], 3) if value and most[place] else None
            kind = f"num share {when}" if most[place] else "num"  # totals have no bar
            cells.append(_cell(text, "" if value is None else repr(value), kind, share))
        if place < 2:
            before, after = pair(line)
            cells.append(_cell(ratio(before, after), repr(before / after) if before and after else "", "num"))
    return [*cells, _cell(line.decision, line.decision)]


def _cell(text: str, value: str, kind: str = "", share: float | None = None) -> dict[str, Any]:
    return {"text": text, "value": value, "kind": kind, "share": share}


_KNOWN = {"m": "measured", "p": "predicted", "m+p": "measured and predicted"}
"""How times are known, by their mark."""


def _cards(layers: Sequence[LayerReport]) -> list[dict[str, Any]]:
    """FLOPs, time and the largest intermediate before and after, with bars."""
    whole = Line("", "", "", tuple(layers))
    names = "FLOPs", f"time, {_KNOWN[whole.mark]}" if whole.mark else "time", "largest intermediate"
    texts = whole.work, [seconds(time) for time in whole.seconds], [memory(peak) for peak in whole.peaks]
    cards = []
    for name, (was, now), pair in zip(names, texts, _PAIRS, strict=True):
        gain = ratio(*pair(whole))
        cards.append(_card(name, f"{was} → {now}", "" if gain == "-" else gain, pair(whole)))
    return cards


def _card(name: str, text: str, note: str, values: tuple[Any, Any] | None = None) -> dict[str, Any]:
    from markupsafe import Markup

    most = max((value or 0 for value in values), default=0) if values else 0
    drawn = Markup(bar(*values, most, f"{name}: {text}")) if values and most else ""
    return {"name": name, "text": text, "note": note, "bar": drawn}


def _counts(report: Report) -> dict[str, Any]:
    return _card("layers", decisions(report.layers) or "none", "")


def _plan(name: str, layers: Sequence[LayerReport]) -> dict[str, Any]:
    """One plan, with its drawings."""
    from markupsafe import Markup

    first, *others = layers
    drawn = [one for one in first.products if one.steps]
    terms = sorted(first.terms, key=lambda term: -len(term.operands))
    dense = next((one.dense for one in first.products if one.dense is not None), None)
    return {
        "id": name,
        "name": first.name,
        "gain": first.reason,
        "others": ", ".join(layer.name for layer in others),
        "expression": first.expression,
        "written": counted(first.written),
        "cards": _cards([first]),
        "terms": [{"svg": Markup(network(term)), "text": term.expression} for term in terms[:_MOST]],
        "more_terms": max(0, len(terms) - _MOST),
        "products": [_product(product) for product in drawn[:_MOST]],
        "small": [one.expression for one in first.products if not one.steps],
        "dense": "" if dense is None else f"One dense operator: {number_of(dense)}, {why_not_dense(first, dense)}.",
    }


def _product(product: Product) -> dict[str, Any]:
    from markupsafe import Markup

    return {
        "text": product.expression,
        "network": Markup(network(product, numbered=True)),
        "tree": Markup(tree(product)),
        "steps": [
            {"string": step.string, "flops": number_of(step.flops), "way": step.way, "weights_only": step.weights_only}
            for step in product.steps
        ],
    }
