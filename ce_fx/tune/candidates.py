"""What could replace one region: several plans, each lowered and priced as it would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from ce_fx.algebra import Expression
from ce_fx.capture.reading import read
from ce_fx.lower.strides import order_of, same_strides, with_order
from ce_fx.lower.sums import candidate, networks
from ce_fx.lower.value import LoweringError
from ce_fx.plan.candidates import make_plans
from ce_fx.plan.costs import Mode
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.plan import Plan
from ce_fx.plan.planner import Objective, make_plan
from ce_fx.plan.time_model import TimeModel
from ce_fx.tune.cost import Cost, cost_of

COUNT = 12
"""Plans that are lowered and priced."""

_PEAK = 4, 1 << 26  # a candidate may need this many times the memory of what is written, and 64 MB


@dataclass(frozen=True)
class Problem:
    """One region: what it computes, on what, and what is known of it.

    Attributes:
        expression: what is computed.
        operands: what the planner knows of each leaf.
        leaves: fake values of the leaves.
        output: fake value of the result as written.
        written: the region's own nodes as a module of the leaves.
        cost: of the nodes as written.
        objective: what is minimised.
        memory_limit: bytes that no intermediate may exceed.
        training: the backward counts.
        model: predicts seconds.
    """

    expression: Expression
    operands: tuple[Operand, ...]
    leaves: tuple[Tensor, ...]
    output: Tensor
    written: GraphModule
    cost: Cost
    objective: Objective
    memory_limit: int | None
    training: bool
    model: TimeModel

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.leaves[0].element_size()


@dataclass(frozen=True)
class Candidate:
    """One way to evaluate a region.

    Attributes:
        plans: one for each product of its expression.
        module: what would run.
        cost: of its ATen nodes, copies included.
    """

    plans: tuple[Plan, ...]
    module: GraphModule
    cost: Cost


def candidates(problem: Problem) -> list[Candidate]:
    """What could replace a region, the best by its objective first; priced as emitted.

    Raises:
        PlanError: no order keeps to the memory limit.
        LoweringError: none has an exact form in torch ops.
    """
    plans = _plans(problem)
    found, error = [], None
    for group in plans:
        try:
            found.append(candidate_of(problem, group))
        except LoweringError as reason:
            error = reason
    if not found and error is not None:
        raise error
    affordable = [one for one in found if one.cost.peak <= _PEAK[0] * problem.cost.peak + _PEAK[1]]
    return sorted(affordable or found, key=lambda one: one.cost.of(problem.objective))


def candidate_of(problem: Problem, plans: Sequence[Plan]) -> Candidate:
    """Lower plans, with the strides that the result has as written.

    Raises:
        LoweringError: a step has no exact form, or the result would have another dtype or device.
    """
    module = candidate(plans, len(problem.leaves))
    reading = read(module, problem.leaves)
    output = module.graph.output_node()
    (last,) = output.all_input_nodes
    result = reading.fakes[last]
    if (result.dtype, result.device) != (problem.output.dtype, problem.output.device):
        raise LoweringError(f"the plan would give {result.dtype} on {result.device}")
    if not same_strides(result, problem.output):
        order = order_of(problem.output)
        if order is None:
            raise LoweringError("the result as written is not dense in memory")
        with module.graph.inserting_before(output):
            output.args = (with_order(module.graph, last, order),)
        module.recompile()
        reading = read(module, problem.leaves)
    nodes = [node for group in reading.ops.values() for node in group]
    return Candidate(tuple(plans), module, cost_of(nodes, problem.model, problem.itemsize, problem.training))


def _plans(problem: Problem) -> list[tuple[Plan, ...]]:
    """Groups of plans, one plan for each product; the product that takes longest varies, the others have their best."""
    train = problem.training and any(operand.needs_grad for operand in problem.operands)
    limit = None if problem.memory_limit is None else problem.memory_limit // problem.itemsize
    mode: Mode = "train" if train else "forward"

    def plans_of(network: Network) -> list[Plan]:
        if problem.objective == "time":
            return make_plans(network, count=COUNT, mode=mode, time_model=problem.model, memory_limit=limit)
        return [make_plan(network, objective=problem.objective, mode=mode, memory_limit=limit)]

    each = [plans_of(network) for network in networks(problem.expression, problem.operands)]
    widest = max(range(len(each)), key=lambda n: (len(each[n]), each[n][0].cost))
    return [tuple(plans[0] if n != widest else plan for n, plans in enumerate(each)) for plan in each[widest]]
