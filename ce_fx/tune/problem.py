"""One region as what is to be chosen for: what it computes, on what, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from ce_fx.algebra import Expression
from ce_fx.algebra.derived import Derived
from ce_fx.lower.derive import POSITIVE
from ce_fx.plan.modes import Mode
from ce_fx.plan.network import Operand
from ce_fx.plan.planner import Objective
from ce_fx.plan.time_model import TimeModel
from ce_fx.tune.cost import Cost


@dataclass(frozen=True)
class Problem:
    """One region: what it computes, on what, and what is known of it.

    Attributes:
        expression: what is computed.
        operands: what the planner knows of each leaf, the derived ones last.
        leaves: fake values of the leaves that are given, symbolic sizes by their hints.
        derived: the leaves that are computed from these.
        output: fake value of the result as written.
        written: the region's own nodes as a module of the leaves.
        cost: of the nodes as written.
        objective: what is minimised.
        memory_limit: bytes that no intermediate may exceed.
        training: the backward counts.
        fold: what depends on weights only is computed once for many runs and does not count.
        model: predicts seconds.
        precision: the dtype to which autocast casts the operands of products, None without autocast.
        symbolic: fake values of the leaves with their symbolic sizes; none where there are no such sizes.
        checkpoint: nothing is kept for the backward, which recomputes.
        guards: a plan may ask that no factor of a symbolic size is 1.
        matmuls: what can be a matmul is one: convolutions round their operands on this device, and none is written.
    """

    expression: Expression
    operands: tuple[Operand, ...]
    leaves: tuple[Tensor, ...]
    derived: tuple[Derived, ...]
    output: Tensor
    written: GraphModule
    cost: Cost
    objective: Objective
    memory_limit: int | None
    training: bool
    fold: bool
    model: TimeModel
    precision: torch.dtype | None = None
    symbolic: tuple[Tensor, ...] = ()
    checkpoint: bool = False
    matmuls: bool = False
    guards: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return (self.precision or self.leaves[0].dtype).itemsize

    @property
    def mode(self) -> Mode:
        """What the planner weighs steps by."""
        if self.fold:
            return "fold"
        if not self.training or not any(operand.needs_grad for operand in self.operands):
            return "forward"
        return "checkpoint" if self.checkpoint else "train"

    @property
    def saves(self) -> bool:
        """Whether what is saved for the backward is to be little."""
        return self.objective == "memory" and self.mode == "train"

    @property
    def lean(self) -> bool:
        """Whether memory counts only among what takes nearly the best time: in training, recomputed or not."""
        return self.objective == "memory" and self.mode in ("train", "checkpoint")

    @property
    def constant(self) -> frozenset[int]:
        """Numbers of the leaves whose work is done once."""
        return frozenset(n for n, operand in enumerate(self.operands) if self.fold and operand.constant)

    @property
    def positive(self) -> frozenset[int]:
        """Numbers of the leaves that are positive, as a variance is."""
        return frozenset(n for leaf in self.derived if leaf.kind in POSITIVE for n in leaf.sources)
