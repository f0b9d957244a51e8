"""What lists of ATen nodes cost: multiply-adds, memory and predicted time, in the mode that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.fx import Node

from ce_fx.lower.price import counted, ops_of_nodes
from ce_fx.plan.time_model import TimeModel
from ce_fx.sizes import hint


@dataclass(frozen=True)
class Cost:
    """What a list of ops costs in one mode.

    Attributes:
        flops: multiply-adds counted as 2, backward included when training.
        peak: bytes of the largest intermediate, the result included.
        seconds: predicted time.
    """

    flops: int
    peak: int
    seconds: float

    def of(self, objective: str) -> float:
        """The number that an objective minimises."""
        return {"time": self.seconds, "flops": float(self.flops), "memory": float(self.peak)}[objective]


def cost_of(nodes: Sequence[Node], model: TimeModel, itemsize: int, training: bool) -> Cost:
    """The cost of some ATen nodes (with fake values, and `needs_grad` where a gradient flows).

    Args:
        nodes: what runs.
        model: predicts seconds.
        itemsize: bytes of an element.
        training: count the backward of what needs a gradient.
    """
    macs, seconds = 0, 0.0
    for node in nodes:
        ops = ops_of_nodes([node])
        grads = sum(n.meta.get("needs_grad", False) for n in node.all_input_nodes) if training else 0
        macs += sum(op.macs for op in ops) * (1 + grads)
        seconds += model.seconds(ops, min(grads, 2))
    peak = max((elements_of(node) for node in nodes if counted(node)), default=0)
    return Cost(2 * macs, peak * itemsize, seconds)


def elements_of(node: Node) -> int:
    """Elements of a node's tensor, symbolic sizes by their hint; 0 for anything else."""
    value = node.meta.get("val")
    return prod(hint(size) for size in value.shape) if isinstance(value, Tensor) else 0
