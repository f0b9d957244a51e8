"""For which sizes the plans of a graph stay close to the best.

Plans are made at the hints of symbolic sizes. At other sizes another order may win: a merged kernel pays once there
are positions enough. Costs are functions of the sizes (those of the ATen nodes, whose shapes are symbolic), so what
was chosen is compared with what could have been at sizes away from the hint, one symbol at a time. Beyond the range
the graph is best captured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, TypeAlias

from torch.fx import Node

from ce_fx.plan.time_model import TimeModel
from ce_fx.sizes import assuming
from ce_fx.tune.cost import cost_of, elements_of

Range: TypeAlias = "tuple[int | None, int | None]"

SLACK = 1.1
"""How many times the best a graph may cost before it is planned anew; the predictions of one model are compared."""

_FARTHEST = 64  # times the hint, and its share
_HALVINGS = 4  # of the step in which a border lies


@dataclass(frozen=True)
class Alternatives:
    """The ways to evaluate one region, each as its ATen nodes, and which is taken."""

    ways: tuple[tuple[Node, ...], ...]
    taken: int
    model: TimeModel
    itemsize: int
    training: bool
    objective: str
    checkpoint: bool = False

    def costs(self) -> tuple[float, float]:
        """Of the way that is taken, and of the best; infinite for sizes that leave nothing to compute."""
        if any(elements_of(op) <= 0 for ops in self.ways for op in ops if op.meta.get("val") is not None):
            return inf, inf
        rest = (self.model, self.itemsize, self.training, self.checkpoint)
        each = [cost_of(ops, *rest).of(self.objective) for ops in self.ways]
        return each[self.taken], min(each)


def good_sizes(
    regions: Sequence[Alternatives], rest: Callable[[], float], values: Mapping[Any, int], symbols: Sequence[Any]
) -> dict[Any, Range]:
    """The smallest and the largest value of each symbol up to which a graph's plans are close to the best.

    Args:
        regions: those that could be evaluated in another way.
        rest: gives what the rest of the graph costs, under assumed sizes.
        values: the hints of all symbols.
        symbols: those to vary.

    Returns:
        (smallest, largest), None where there is no such border within a factor of 64. A symbol without any is left out.
    """
    from sympy import Integer

    def loss(symbol: Any, value: int) -> float:
        with assuming({**values, symbol: Integer(value)}):
            pairs = [region.costs() for region in regions]
            more = rest()
        taken, best = (sum(pair[n] for pair in pairs) + more for n in (0, 1))
        return taken / best if 0 < best < inf else 0.0

    found = {}
    for symbol in symbols:
        at = int(values[symbol])
        here = partial(loss, symbol)
        limit = SLACK * max(1.0, here(at))
        upwards = [at * 2**n for n in range(1, _FARTHEST.bit_length())]
        downwards = [at // 2**n for n in range(1, _FARTHEST.bit_length()) if at // 2**n >= 2]
        borders = _border(here, limit, at, downwards), _border(here, limit, at, upwards)
        if borders != (None, None):
            found[symbol] = borders
    return found


def _border(loss: Callable[[int], float], limit: float, at: int, values: Sequence[int]) -> int | None:
    """The last value on the way from `at` through some others whose loss is within the limit; None if all are."""
    good = at
    for value in values:
        if loss(value) <= limit:
            good = value
            continue
        bad = value
        for _ in range(_HALVINGS):
            middle = (good + bad) // 2
            if middle in (good, bad):
                break
            good, bad = (middle, bad) if loss(middle) <= limit else (good, middle)
        return good
    return None
