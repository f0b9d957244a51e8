"""A chosen plan: the tree, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ce_fx.plan.network import Network
from ce_fx.plan.tree import Tree
from ce_fx.plan.ways import Way


@dataclass(frozen=True)
class Plan:
    """An evaluation order for one product, with its costs.

    Attributes:
        network: what is evaluated.
        tree: the order.
        method: how it was found: "written", "optimal", "connected", "greedy", "path".
        flops: multiply-adds of one forward evaluation (not weighted by mode).
        largest: elements of the largest intermediate (the output included, operands not).
        cost: the value of the objective that was minimised, in its unit (multiply-adds, elements or seconds).
        ways: for the steps that are not evaluated in the way of their kind (see `ce_fx.plan.ways`), by the operands
            of their result: the way.
        channels_last: images are brought into that memory format first, and stay in it.
    """

    network: Network
    tree: Tree
    method: str
    flops: int
    largest: int
    cost: float
    ways: Mapping[int, Way] = field(default_factory=dict)
    channels_last: bool = False


class PlanError(ValueError):
    """What was asked of the planner cannot be had; the message says what can, and what to do."""
