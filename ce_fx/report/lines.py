"""The rows of a table: layers, folded to a module depth, the small ones together, sorted; they add up to the whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ce_fx.report.layer import DECISIONS, LayerReport
from ce_fx.report.units import UNKNOWN, number_of

SORTS = ("graph", "gain", "time", "name")


@dataclass(frozen=True)
class Line:
    """One row: a layer, or several as one.

    Attributes:
        name: what the row is called.
        kind: class of the module, or how many layers the row stands for.
        decision: what is printed under that heading.
        layers: what the row stands for.
    """

    name: str
    kind: str
    decision: str
    layers: tuple[LayerReport, ...]

    @property
    def flops(self) -> tuple[int | None, int | None]:
        """FLOPs before and after; None where none of the layers could be counted."""
        return self._sums("flops_before", "flops_after")

    @property
    def work(self) -> tuple[str, str]:
        """FLOPs before and after as they print: "1.2 G + ?" where some of the layers could not be counted."""
        unknown = any(layer.flops_before is None for layer in self.layers)
        before, after = (UNKNOWN if unknown and not n else f"{number_of(n)}{' + ?' * unknown}" for n in self.flops)
        return before, after

    @property
    def seconds(self) -> tuple[float | None, float | None]:
        """Seconds before and after, of the layers that have some; None where none has."""
        return self._sums("time_before", "time_after")

    @property
    def peaks(self) -> tuple[int | None, int | None]:
        """Bytes of the largest intermediate before and after."""
        before, after = (
            [peak for layer in self.layers if (peak := getattr(layer, name)) is not None]
            for name in ("peak_before", "peak_after")
        )
        return max(before, default=None), max(after, default=None)

    @property
    def mark(self) -> str:
        """How the times are known: "m", "p", or "m+p"."""
        return "+".join(sorted({layer.mark for layer in self.layers if layer.time_before is not None}))

    def gain(self, objective: str) -> float:
        """Before over after of what an objective minimises, of FLOPs where that is not known; 1 where nothing is."""
        by = {"time": self.seconds, "flops": self.flops, "memory": self.peaks}
        for before, after in (by[objective], self.flops):
            if before and after:
                return before / after
        return 1.0

    def _sums(self, *names: str) -> tuple[Any, Any]:
        before, after = (total(getattr(layer, name) for layer in self.layers) for name in names)
        return before, after


_Number = TypeVar("_Number", int, float)


def total(values: Iterable[_Number | None]) -> _Number | None:
    """The sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def lines_of(
    layers: Sequence[LayerReport],
    objective: str = "time",
    sort: str = "graph",
    depth: int | None = None,
    min_gain: float | None = None,
    full: bool = False,
) -> list[Line]:
    """The rows of a table.

    Args:
        layers: in graph order.
        objective: what `gain` is of: "time", "flops" or "memory".
        sort: "graph" as the model runs, "gain" and "time" the largest first, "name" by module path.
        depth: layers below this module depth become one row for each module at it; 1 is the model's children.
        min_gain: layers with a smaller gain become one row, the last.
        full: reasons in full; else up to the first semicolon.

    Refused layers without multiply-adds are one row, the last: the facts below the table tell why.

    Raises:
        ValueError: `sort` is no such word, or `depth` is below 1.
    """
    if sort not in SORTS:
        raise ValueError(f"sort must be one of {', '.join(SORTS)}, not {sort!r}")
    if depth is not None and depth < 1:
        raise ValueError(f"depth must be at least 1 (the model's children), not {depth}")
    idle = [layer for layer in layers if _is_idle(layer)]
    last = _summed(idle, f"({len(idle)} without multiply-adds)") if len(idle) > 1 else []
    layers = [layer for layer in layers if not last or not _is_idle(layer)]
    lines = _single(layers, full) if depth is None else _folded(layers, depth, full)
    rest = sorted(lines, key=_KEYS[sort](objective))
    if min_gain is None:
        return [*rest, *last]
    small = [layer for line in lines if line.gain(objective) < min_gain for layer in line.layers]
    rest = [line for line in rest if line.gain(objective) >= min_gain]
    return [*rest, *_summed(small, f"({len(small)} layers below {min_gain:g}x)"), *last]


_KEYS: dict[str, Callable[[str], Callable[[Line], Any]]] = {
    "graph": lambda _: lambda line: 0,
    "gain": lambda objective: lambda line: -line.gain(objective),
    "time": lambda _: lambda line: -(line.seconds[0] or 0.0),
    "name": lambda _: lambda line: natural(line.name),
}


def natural(name: str) -> list[tuple[bool, int, str]]:
    """A key by which layer2 comes before layer10."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _is_idle(layer: LayerReport) -> bool:
    """Whether a row holds no multiply-adds, as a refused cast does."""
    return layer.decision == "refused" and layer.flops_before == 0


def _single(layers: Sequence[LayerReport], full: bool) -> list[Line]:
    seen: dict[object, str] = {}
    lines = []
    for layer in layers:
        twin = seen.setdefault(layer.key, layer.name)
        lines.append(Line(layer.name, layer.kind, _decision(layer, twin, full), (layer,)))
    return lines


def _decision(layer: LayerReport, twin: str, full: bool) -> str:
    if layer.decision == "rewritten" and twin != layer.name:
        return f"rewritten (same plan as {twin})"
    reason = layer.reason if full else short(layer.reason)
    return f"{layer.decision}: {reason}" if reason else layer.decision


def short(reason: str) -> str:
    """A reason up to its first semicolon: what follows explains it."""
    return reason.partition("; ")[0]


def _folded(layers: Sequence[LayerReport], depth: int, full: bool) -> list[Line]:
    groups: dict[str, list[LayerReport]] = {}
    for layer in layers:
        groups.setdefault(_module(layer.name, depth), []).append(layer)
    return [
        _single(group, full)[0] if len(group) == 1 else Line(name, *_counted(group), tuple(group))
        for name, group in groups.items()
    ]


def _module(name: str, depth: int) -> str:
    """The module at a depth that a layer belongs to; "a.0 .. b" and "matmul at net.py:12" are of the model itself."""
    return name if " " in name else ".".join(name.split(".")[:depth])


def _summed(layers: Sequence[LayerReport], name: str) -> list[Line]:
    return [Line(name, *_counted(layers), tuple(layers))] if layers else []


def _counted(layers: Sequence[LayerReport]) -> tuple[str, str]:
    return f"{len(layers)} layers", decisions(layers)


def decisions(layers: Sequence[LayerReport], every: bool = False) -> str:
    """How many layers have which decision: "12 rewritten, 7 kept"; with `every` those of which there are none, too."""
    counts = {name: sum(layer.decision == name for layer in layers) for name in DECISIONS}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count or every)
