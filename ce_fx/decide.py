"""Decide about one region: plan it, price it against what was written, verify it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from ce_fx.algebra import Expression
from ce_fx.algebra.canonical import canonical
from ce_fx.capture.reading import read
from ce_fx.lift.regions import Region
from ce_fx.lower.emit import LoweringError
from ce_fx.lower.extract import extract
from ce_fx.lower.price import counted, ops_of_nodes
from ce_fx.lower.strides import order_of, same_strides, with_order
from ce_fx.lower.sums import candidate, networks
from ce_fx.lower.verify import mismatch
from ce_fx.options import Options
from ce_fx.plan.network import Operand
from ce_fx.plan.path_info import step_lines
from ce_fx.plan.plan import Plan, PlanError
from ce_fx.plan.planner import make_plan
from ce_fx.plan.time_model import TimeModel
from ce_fx.sizes import hint

log = logging.getLogger(__name__)

MARGIN = {"time": 0.9, "flops": 1.0, "memory": 1.0}
"""A rewrite must cost less than this share of what was written. Time is a prediction, so it must win clearly."""


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


@dataclass(frozen=True)
class Decision:
    """What is done with a region.

    Attributes:
        decision: "rewritten", "kept" or "refused".
        reason: one plain sentence.
        expression: the region's string.
        before, after: costs as written, and as it will run.
        plan: the pairwise steps as strings.
        candidate: what replaces the region, or None.
        mismatch: verification found another result.
    """

    decision: str
    reason: str
    expression: str
    before: Cost
    after: Cost
    plan: tuple[str, ...] = ()
    candidate: GraphModule | None = None
    mismatch: bool = False


@dataclass
class Context:
    """What decisions about one graph share.

    Attributes:
        gm: the graph.
        options: what the user asked for.
        fakes: own node -> fake value.
        constant: own nodes that depend on weights only.
        time_model: prices ops.
        training: gradients are recorded.
        decided: decisions by signature, so that equal regions are decided once.
    """

    gm: GraphModule
    options: Options
    fakes: dict[Node, Any]
    constant: set[Node]
    time_model: TimeModel
    training: bool
    decided: dict[object, Decision] = field(default_factory=dict)


def decide(region: Region, context: Context) -> Decision | None:
    """Decide about a region; None if it holds no product at all (reshapes and scalings only)."""
    if max(len(term.factors) for term in region.expression.terms) < 2:
        return None
    key = _signature(region, context)
    if key not in context.decided:
        context.decided[key] = _decide(region, context)
    return context.decided[key]


def _decide(region: Region, context: Context) -> Decision:
    leaves = [context.fakes[leaf] for leaf in region.leaves]
    written = _cost(region.ops, context, leaves[0])
    text = str(region.expression)

    def keep(reason: str, decision: str = "kept", **more: Any) -> Decision:
        return Decision(decision, reason, text, written, written, **more)

    if len(region.expression.terms[0].factors) == 2 and sum(op.macs > 0 for op in ops_of_nodes(region.ops)) <= 1:
        convolution = any(term.windows for term in region.expression.terms)
        return keep("one convolution" if convolution else "a single contraction")
    try:
        plans = _plans(region.expression, region, context, leaves)
        module = candidate(plans, len(region.leaves))
        module = _as_written_layout(module, leaves, context.fakes[region.output])
    except (PlanError, LoweringError) as error:
        return keep(str(error), "refused")
    reading = read(module, leaves)
    ops = [op for ops in reading.ops.values() for op in ops]
    after = _cost(ops, context, leaves[0])
    steps = tuple(line for plan in plans for line in step_lines(plan))
    result = next(reading.fakes[n.args[0]] for n in module.graph.nodes if n.op == "output")
    if (result.dtype, result.device) != (context.fakes[region.output].dtype, context.fakes[region.output].device):
        return keep(f"the plan would give {result.dtype} on {result.device}", "refused")
    objective = context.options.objective
    if after.of(objective) >= MARGIN[objective] * written.of(objective):
        return keep(_no_gain(objective, written, after))
    if context.options.verify:
        difference = mismatch(
            extract(context.gm, region.nodes, region.leaves, context.fakes), module, leaves, _length(region)
        )
        if difference is not None:
            warnings.warn(
                f"ce_fx: {text} was planned wrongly ({difference}); it runs as written. Please report this.",
                stacklevel=2,
            )
            return keep(f"verification failed: {difference}", mismatch=True)
    return Decision("rewritten", _gain(objective, written, after), text, written, after, steps, module)


def _plans(expression: Expression, region: Region, context: Context, leaves: Sequence[Tensor]) -> list[Plan]:
    operands = [
        Operand(constant=leaf in context.constant, needs_grad=context.training and fake.requires_grad)
        for leaf, fake in zip(region.leaves, leaves, strict=True)
    ]
    train = any(operand.needs_grad for operand in operands)
    limit = context.options.memory_limit
    return [
        make_plan(
            network,
            objective=context.options.objective,
            mode="train" if train else "forward",
            memory_limit=None if limit is None else limit // leaves[0].element_size(),
            time_model=_model(context, leaves[0]),
        )
        for network in networks(expression, operands)
    ]


def _as_written_layout(module: GraphModule, leaves: Sequence[Tensor], written: Tensor) -> GraphModule:
    """Add a copy at the end where the result's strides would differ from those as written."""
    reading = read(module, leaves)
    output = next(node for node in module.graph.nodes if node.op == "output")
    result = reading.fakes[output.args[0]]
    if same_strides(result, written):
        return module
    order = order_of(written)
    if order is None:
        raise LoweringError("the result as written is not dense in memory")
    with module.graph.inserting_before(output):
        output.args = (with_order(module.graph, output.args[0], order),)
    module.recompile()
    return module


def _cost(nodes: Sequence[Node], context: Context, leaf: Tensor) -> Cost:
    """The cost of some ATen nodes, in the mode that runs and the dtype of a leaf."""
    macs, seconds = 0, 0.0
    model = _model(context, leaf)
    for node in nodes:
        ops = ops_of_nodes([node])
        grads = _grads(node) if context.training else 0
        macs += sum(op.macs for op in ops) * (1 + grads)
        seconds += model.seconds(ops, min(grads, 2))
    peak = max((_elements(node) for node in nodes if counted(node)), default=0)
    return Cost(2 * macs, peak * leaf.element_size(), seconds)


def _model(context: Context, leaf: Tensor) -> TimeModel:
    return context.time_model.for_numbers(leaf.element_size(), leaf.is_complex())


def _grads(node: Node) -> int:
    """How many operands of an ATen node need a gradient."""
    return sum(n.meta.get("needs_grad", False) for n in node.all_input_nodes)


def _elements(node: Node) -> int:
    value = node.meta["val"]
    return prod(hint(size) for size in value.shape)


def _length(region: Region) -> int:
    """Products that are added up for one output element, for the rounding to expect."""
    term = region.expression.terms[0]
    kept = {index for axis in region.expression.axes for index in axis}
    summed = [i for i in term.indices if i not in kept and not any(i == w.features for w in term.windows)]
    return prod(index.size for index in summed)


def _signature(region: Region, context: Context) -> object:
    """All that a decision depends on: what is computed, how it is written, and what its leaves are."""
    leaves = tuple(
        (str(f.shape), str(f.stride()), f.dtype, f.device, f.requires_grad, leaf in context.constant)
        for leaf, f in ((leaf, context.fakes[leaf]) for leaf in region.leaves)
    )
    written = tuple((str(op.target), str(op.meta["val"].shape), str(op.meta["val"].stride())) for op in region.ops)
    return canonical(region.expression), leaves, written


def _gain(objective: str, before: Cost, after: Cost) -> str:
    ratio = before.of(objective) / max(after.of(objective), 1e-12)
    word = {"time": "less time predicted", "flops": "fewer FLOPs", "memory": "less memory at the peak"}[objective]
    return f"{ratio:.1f}x {word}"


def _no_gain(objective: str, before: Cost, after: Cost) -> str:
    if objective == "time" and after.flops < before.flops:
        return "an order with fewer FLOPs is not predicted to be faster"
    return {
        "time": "no faster order found",
        "flops": "FLOPs are already optimal",
        "memory": "memory is already optimal",
    }[objective]
