"""A report as a figure; matplotlib is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ce_fx.report.lines import total

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ce_fx.report.report import Report

_UNITS = (12, "TFLOPs"), (9, "GFLOPs"), (6, "MFLOPs"), (3, "kFLOPs"), (0, "FLOPs")
_BEFORE, _AFTER = "#9aa5b1", "#2563eb"


def plot_of(report: Report) -> Figure:
    """See `Report.plot`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("report.plot() needs matplotlib: pip install ce_fx[plot]") from error
    layers = report.layers
    places = range(len(layers))
    size = max(6.0, 0.4 * len(layers) + 2), 7
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=size, layout="constrained")
    most = max((layer.flops_before or 0 for layer in layers), default=0)
    power, prefixed = next(one for one in _UNITS if most >= 10 ** one[0] or not one[0])
    for axes, name, unit, scale in ((top, "flops", prefixed, 10.0**-power), (bottom, "time", "ms", 1e3)):
        before = [scale * (getattr(layer, f"{name}_before") or 0) for layer in layers]
        after = [scale * (getattr(layer, f"{name}_after") or 0) for layer in layers]
        axes.bar([place - 0.2 for place in places], before, 0.4, label="as written", color=_BEFORE)
        axes.bar([place + 0.2 for place in places], after, 0.4, label="now", color=_AFTER)
        axes.set_ylabel(unit)
        for place, layer in enumerate(layers):
            if getattr(layer, f"{name}_before") is None:
                axes.text(place, 0, "?", ha="center", va="bottom")
    marks = {layer.mark for layer in layers if layer.time_before is not None}
    known = {"m": "measured", "p": "predicted"}
    bottom.set_ylabel(f"ms ({' and '.join(known[mark] for mark in sorted(marks))})" if marks else "ms")
    bottom.set_xticks(list(places), [layer.name for layer in layers], rotation=90)
    top.legend()
    if total(layer.time_before for layer in layers) is None:
        bottom.text(0.5, 0.5, "no times are known", ha="center", transform=bottom.transAxes)
    top.set_title(report.title or "ce_fx", fontsize="small", wrap=True)
    return figure
