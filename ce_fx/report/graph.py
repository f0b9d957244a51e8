"""What was found in one graph: its multilinear layers, and what else runs there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ce_fx.report.layer import LayerReport


@dataclass(frozen=True)
class Elsewhere:
    """The ops of one name that no row holds: nonlinearities, normalisations, pools.

    Attributes:
        op: its name in torch: "relu".
        count: how often it runs.
        bytes: read and written, forward.
        seconds: predicted, backward included when training; None where no device is known.
    """

    op: str
    count: int
    bytes: int
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class GraphReport:
    """What was found in one graph.

    Attributes:
        layers: its rows, in graph order.
        elsewhere: the ops that no row holds, by name.
        bytes: read and written by all ops as they are written, forward.
    """

    layers: tuple[LayerReport, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    bytes: int = 0

    def with_layers(self, change: Callable[[LayerReport], LayerReport]) -> GraphReport:
        """The same with every row changed."""
        return replace(self, layers=tuple(map(change, self.layers)))


def together(graphs: Iterable[GraphReport]) -> GraphReport:
    """Several graphs as one: their rows in order, other ops added up by name."""
    rows: list[LayerReport] = []
    others: dict[str, Elsewhere] = {}
    total = 0
    for graph in graphs:
        rows += graph.layers
        total += graph.bytes
        for one in graph.elsewhere:
            others[one.op] = _both(others[one.op], one) if one.op in others else one
    return GraphReport(tuple(rows), tuple(others.values()), total)


def _both(a: Elsewhere, b: Elsewhere) -> Elsewhere:
    seconds = None if a.seconds is None or b.seconds is None else a.seconds + b.seconds
    return Elsewhere(a.op, a.count + b.count, a.bytes + b.bytes, seconds)
