"""What lists of ATen nodes cost: multiply-adds, memory and predicted time, in the mode that runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor
from torch.fx import Node

from ce_fx.capture.reading import Reading
from ce_fx.lower.gradients import gradients_of
from ce_fx.lower.price import counted, ops_of_nodes
from ce_fx.lower.value import LoweringError
from ce_fx.plan.ops import Op
from ce_fx.plan.time_model import TimeModel
from ce_fx.sizes import hint


@dataclass(frozen=True)
class Cost:
    """What a list of ops costs in one mode.

    Attributes:
        flops: multiply-adds counted as 2, backward included when training.
        peak: bytes of the largest intermediate, the result included.
        seconds: predicted time.
        forward_flops, forward_seconds: the part of both that is forward; all of it when not training.
        saved: in training, where memory is what counts: bytes that are kept for the backward.
    """

    flops: int
    peak: int
    seconds: float
    forward_flops: int = 0
    forward_seconds: float = 0.0
    saved: int | None = None

    def of(self, objective: str) -> float:
        """The number that an objective minimises; for memory what is saved for the backward, else the peak."""
        memory = self.peak if self.saved is None else self.saved
        return {"time": self.seconds, "flops": float(self.flops), "memory": float(memory)}[objective]

    def timed(self, seconds: float) -> Cost:
        """The same ops with their time as it was measured; the forward part is the predicted share of it."""
        share = self.forward_seconds / self.seconds if self.seconds else 1.0
        return replace(self, seconds=seconds, forward_seconds=share * seconds)


def cost_of(nodes: Sequence[Node], model: TimeModel, itemsize: int, training: bool, checkpoint: bool = False) -> Cost:
    """The cost of some ATen nodes (with fake values, and `needs_grad` where a gradient flows).

    Args:
        nodes: what runs.
        model: predicts seconds.
        itemsize: bytes of an element.
        training: count the backward of what needs a gradient.
        checkpoint: count what is before the last product twice forward: it is recomputed in the backward.
    """
    macs, forward, seconds, first = 0, 0, 0.0, 0.0
    priced = [ops_of_nodes([node]) for node in nodes]
    # An addition keeps nothing for its backward, and a product its operands only: recomputation stops before it.
    last = max((n for n, ops in enumerate(priced) if any(op.macs for op in ops)), default=0)
    for n, (node, ops) in enumerate(zip(nodes, priced, strict=True)):
        runs = 2 if checkpoint and n < last else 1
        grads = gradients_of(node) if training else 0
        once = sum(op.macs for op in ops) * real_products(node)
        forward += once
        macs += once * (runs + grads)
        first += model.seconds(ops)
        seconds += model.seconds(ops, grads, runs)
    peak = max((elements_of(node) for node in nodes if counted(node)), default=0)
    return Cost(2 * macs, peak * itemsize, seconds, 2 * forward, first)


def real_products(node: Node) -> int:
    """Real multiply-adds for one of a node's numbers: four where they are complex."""
    value = node.meta["val"]
    return 4 if isinstance(value, Tensor) and value.is_complex() else 1


def every_time(nodes: Sequence[Node], done: Collection[object]) -> list[Node]:
    """The ATen nodes, in order, that run in every call if what depends on `done` only is computed once."""
    once = set(done)
    rest = []
    for node in nodes:
        if all(n in once for n in node.all_input_nodes):
            once.add(node)
        else:
            rest.append(node)
    return rest


def rest_of_graph(nodes: Sequence[Node], model: TimeModel, itemsize: int, training: bool) -> float:
    """Predicted seconds of nodes that no region holds; one without a formula reads and writes its tensors once."""
    known = [node for node in nodes if counted(node)]
    plain = [op for node in nodes if not counted(node) for op in work_of(node)]
    both = 2 if training else 0
    return cost_of(known, model, itemsize, training).seconds + model.seconds(plain, both)


def work_of(node: Node) -> tuple[Op, ...]:
    """The ops of a node; one without a formula reads and writes its tensors once, and a view does nothing."""
    if counted(node):
        return ops_of_nodes([node])
    if not elements_of(node) or _is_view(node):
        return ()
    return (Op("add", 0, 1, 1, elements_of(node), sum(map(elements_of, (node, *node.all_input_nodes)))),)


def _is_view(node: Node) -> bool:
    sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    return any(_memory(node) == _memory(source) for source in sources)


def _memory(node: Node) -> object:
    return node.meta["memory"] if "memory" in node.meta else Reading.storage(node.meta["val"])


def check_limit(nodes: Sequence[Node], limit: int) -> None:
    """Bound each tensor that some ATen nodes make; a view makes none.

    A plan bounds its products. A padded copy of features is none, and one of weights is in full precision under
    autocast, which is twice what the plan takes it for.

    Args:
        nodes: what runs.
        limit: bytes.

    Raises:
        LoweringError: one is larger.
    """
    made = [node for node in nodes if elements_of(node) and not _is_view(node)]
    largest = max((elements_of(node) * node.meta["val"].element_size() for node in made), default=0)
    if largest > limit:
        raise LoweringError(
            f"a tensor on the way would take {largest} bytes, more than the memory limit of {limit}: "
            f"raise the memory limit to {largest}, or lift it"
        )


def elements_of(node: Node) -> int:
    """Elements of a node's tensor, symbolic sizes by their hint; 0 for anything else."""
    value = node.meta.get("val")
    return prod(hint(size) for size in value.shape) if isinstance(value, Tensor) else 0
