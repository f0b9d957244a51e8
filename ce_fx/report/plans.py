"""The plans of a report as text: string, sizes, and steps with their FLOPs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tabulate import tabulate

from ce_fx.report.layer import LayerReport
from ce_fx.report.product import Product
from ce_fx.report.units import number_of, ratio

if TYPE_CHECKING:
    from ce_fx.report.report import Report


def plans_of(report: Report) -> str:
    """Every different plan once, with the layers that have it. FLOPs of steps are of one forward."""
    groups = groups_of(report.layers)
    if not groups:
        return "no plan: nothing was rewritten"
    return "\n\n".join("\n".join(_plan(layers)) for layers in groups)


def groups_of(layers: Iterable[LayerReport]) -> list[list[LayerReport]]:
    """The rewritten layers, those of one plan together."""
    same: dict[object, list[LayerReport]] = {}
    for layer in layers:
        if layer.decision == "rewritten":
            same.setdefault(layer.key, []).append(layer)
    return list(same.values())


def _plan(layers: list[LayerReport]) -> list[str]:
    first, *others = layers
    lines = [f"{first.name}    {first.expression}"]
    if others:
        lines.append(f"  the same for {', '.join(layer.name for layer in others)}")
    for product in first.products:
        if product.steps:
            lines += _product(product, alone=len(first.products) == 1)
    single = [product.expression for product in first.products if not product.steps]
    if single:
        lines.append(f"  nothing to order in {', '.join(single)}")
    end = [f"as written: {counted(first.written)}"] if first.written else []
    dense = next((one.dense for one in first.products if one.dense is not None), None)
    if dense is not None and first.flops_after:
        end.append(f"one dense operator: {number_of(dense)}, {why_not_dense(first, dense)}")
    return [*lines, *(f"  {line}" for line in end)]


def why_not_dense(layer: LayerReport, dense: int) -> str:
    """What merging all weights first would cost, beside what runs in one forward."""
    now = layer.forward_flops_after or layer.flops_after or 0
    if dense > now:
        return f"{ratio(dense, now)} more"
    last = layer.products[0].steps[-1] if layer.products and layer.products[0].steps else None
    return "which is what runs" if last is not None and last.flops == dense else "and the merging of its weights"


def _product(product: Product, alone: bool) -> list[str]:
    sizes = " ".join(f"{letter}={'/'.join(map(str, size))}" for letter, size in product.sizes.items())
    head = sizes if alone else f"{product.expression}    {sizes}"
    rows = [
        [str(n), step.string, number_of(step.flops), step.way, "weights only" if step.weights_only else ""]
        for n, step in enumerate(product.steps, 1)
    ]
    align = ("right", "left", "right", "left", "left")
    table = tabulate(rows, tablefmt="plain", colalign=align, disable_numparse=True)
    return [f"  {head}", *(f"    {line.rstrip()}" for line in table.splitlines())]


def counted(ops: tuple[str, ...]) -> str:
    """Ops by name, with how often: "4 einsum, mul"."""
    return ", ".join(f"{count} {op}" if count > 1 else op for op, count in Counter(ops).items())
