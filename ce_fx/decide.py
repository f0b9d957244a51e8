"""Decide about one region: choose how it is evaluated, and verify that against what was written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ce_fx.algebra.canonical import canonical
from ce_fx.at_sight import convolves, has_scalings, holds_product, length, nothing_to_reorder
from ce_fx.inner import judge
from ce_fx.lift.region import Region
from ce_fx.lower.extract import extract
from ce_fx.lower.precision import rounded
from ce_fx.lower.recompute import saved_bytes
from ce_fx.lower.value import LoweringError
from ce_fx.lower.verify import less_accurate, mismatch
from ce_fx.options import Options
from ce_fx.plan.network import Operand
from ce_fx.plan.path_info import step_lines
from ce_fx.plan.plan import Plan, PlanError
from ce_fx.plan.time_model import TimeModel
from ce_fx.sizes import symbol
from ce_fx.tune.candidates import as_written, candidates, drafts
from ce_fx.tune.choice import Choice, by_prediction, can_be_timed, choose, kept_as_written
from ce_fx.tune.cost import Cost, cost_of
from ce_fx.tune.lean import leanest
from ce_fx.tune.problem import Problem
from ce_fx.tune.ranges import Alternatives
from ce_fx.tune.remembered import key_of, recall, remember
from ce_fx.tune.rescaled import planned_at
from ce_fx.tune.symbolic import at_hints, is_symbolic

log = logging.getLogger(__name__)


AGAIN = 1.03
"""Times faster that a region must be for computing again what it could read."""


@dataclass(frozen=True)
class Decision:
    """What is done with a region.

    Attributes:
        decision: "rewritten", "kept" or "refused".
        reason: one plain sentence.
        expression: the region's string.
        before, after: costs as written, and as it will run; seconds are measured where `measured` says so.
        plan: the pairwise steps as strings.
        plans: the plan of each product.
        candidate: what replaces the region, or None.
        mismatch: verification found another result.
        measured: the seconds were measured.
        recompute: nothing of it is kept for the backward; only where something would be.
        once: of the candidate, the ATen nodes that depend on weights only and run in every call.
        alternatives: where sizes are symbolic, the ways between which sizes decide.
        above_one: factors of symbolic sizes that must be above 1 for the candidate to hold.
    """

    decision: str
    reason: str
    expression: str
    before: Cost
    after: Cost
    plan: tuple[str, ...] = ()
    plans: tuple[Plan, ...] = ()
    candidate: GraphModule | None = None
    mismatch: bool = False
    measured: bool = False
    recompute: bool = False
    once: tuple[Node, ...] = ()
    alternatives: Alternatives | None = None
    above_one: tuple[torch.SymInt, ...] = ()


@dataclass
class Context:
    """What decisions about one graph share.

    Attributes:
        gm: the graph.
        options: what the user asked for.
        fakes: own node -> fake value.
        constant: own nodes that depend on weights only.
        model: gives the time model of a device and dtype; with True it may be calibrated now.
        training: gradients are recorded.
        ops: own node -> its ATen nodes.
        guards: whether a plan may ask that no factor of a symbolic size is 1.
        close: whether plans are compared at other sizes.
        decided: decisions by signature, so that equal regions are decided once.
        stopped: the user wants no more planning.
    """

    gm: GraphModule
    options: Options
    fakes: dict[Node, Any]
    constant: set[Node]
    model: Callable[[torch.device, torch.dtype, bool], TimeModel]
    training: bool
    ops: Mapping[Node, tuple[Node, ...]]
    guards: bool = False
    close: bool = False
    decided: dict[object, Decision] = field(default_factory=dict)
    stopped: bool = False

    @property
    def checkpoint(self) -> bool:
        """Nothing is kept for the backward but the leaves of regions; where gradients are recorded."""
        return self.options.checkpoint and self.training

    @property
    def fold(self) -> bool:
        """What depends on weights only is computed once; never where gradients are recorded."""
        return self.options.fold and not self.training


def decide(region: Region, context: Context) -> Decision | None:
    """Decide about a region; None if it holds no product at all (reshapes, scalings and sums only)."""
    if not holds_product(region):
        return None
    key = _signature(region, context)
    if key not in context.decided:
        context.decided[key] = _decide_or_keep(region, context)
    return context.decided[key]


def decide_again(
    region: Region, decision: Decision, wider: Sequence[Region], context: Context
) -> tuple[Region, Decision]:
    """The better of a decision and those for the regions in its place that compute again what others read too.

    Args:
        region: what reads these values.
        decision: what was decided about it.
        wider: `Regions.again` of its result.
        context: of the graph.
    """
    best = region, decision
    for wide in wider if context.options.objective != "memory" and not context.checkpoint else ():
        if decision.mismatch or not has_fewer_flops(wide, region, best[1], context):
            continue
        other = decide(wide, context)
        if other is None or other.candidate is None:
            continue
        both = [one.after.of(context.options.objective) for one in (other, best[1])]
        if best[1].candidate is None or (other.measured == best[1].measured and AGAIN * both[0] < both[1]):
            names = ", ".join(leaf.name for leaf in wide.leaves if leaf in wide.again)
            best = wide, replace(other, reason=f"{other.reason}; computes {names} again, which others read too")
    return best


def has_fewer_flops(wide: Region, region: Region, decision: Decision, context: Context) -> bool:
    """Whether the FLOPs alone leave room for a gain: most often they do not, and nothing more is planned.

    They must be fewer than those that were chosen, and than the fewest with what others read: where an order with more
    FLOPs was faster, a wider region has nothing to add.
    """

    def fewest(one: Region) -> int:
        found = drafts(replace(problem_of(one, context), objective="flops"))
        return int(2 * min(sum(plan.cost for plan in plans) for _, plans in found))

    try:
        flops = fewest(wide)
        return flops < decision.after.flops and flops < fewest(region)
    except Exception as error:  # the region that reads the value has been decided about, and is not lost
        log.debug("%s is not looked at: %s: %s", wide.expression, type(error).__name__, error)
        return False


def undecided(region: Region, context: Context, reason: str) -> Decision | None:
    """A region kept as written without a look at it; None if it holds no product."""
    if not holds_product(region):
        return None
    return _keep(str(region.expression), _as_written(region, context), reason)


def _decide_or_keep(region: Region, context: Context) -> Decision:
    """The decision; where something goes wrong the region runs as written, and the other regions are not lost."""
    try:
        return _decide(region, context)
    except Exception as error:
        details = log.isEnabledFor(logging.DEBUG)
        log.warning("%s runs as written: %s: %s", region.expression, type(error).__name__, error, exc_info=details)
        reason = f"ce_fx failed on this region ({type(error).__name__}: {error})"
        return _keep(str(region.expression), _as_written(region, context), reason, "refused")


def unchanged(decision: Decision, reason: str) -> Decision:
    """A rewrite taken back, for a reason of the whole graph; other decisions as they are."""
    if decision.candidate is None:
        return decision
    as_written = decision.alternatives and replace(decision.alternatives, taken=0)
    kept = replace(decision, decision="kept", reason=reason, after=decision.before, plan=(), plans=(), candidate=None)
    return replace(kept, alternatives=as_written, above_one=())


def _decide(region: Region, context: Context) -> Decision:
    text = str(region.expression)
    dtype = context.fakes[region.output].dtype
    if region.precision not in (None, dtype):
        reason = f"computes in {_short(dtype)} under autocast to {_short(region.precision)}"
        return _keep(text, _as_written(region, context), reason)
    alone = nothing_to_reorder(region)
    if alone and not (context.fold and has_scalings(region)):
        return _keep(text, _as_written(region, context), alone)
    problem = problem_of(region, context)
    try:
        problem, choice = _less_work(problem, region) if alone else _chosen(problem, region, context)
    except (PlanError, LoweringError) as error:
        return _keep(text, problem.cost, str(error), "refused")
    before = problem.cost.timed(choice.written)
    alternatives = _alternatives(problem, region, choice) if problem.symbolic and context.close else None
    if choice.candidate is None:
        return _keep(text, before, choice.reason, measured=choice.measured, alternatives=alternatives)
    module = choice.candidate.module
    whole = _extracted(region, context, (*region.again, *region.nodes)) if region.again else problem.written
    if context.options.verify:
        difference = mismatch(whole, module, problem.leaves, length(region), problem.positive)
        if difference is not None:
            warnings.warn(
                f"ce_fx: {text} was planned wrongly ({difference}); it runs as written. Please report this.",
                stacklevel=2,
            )
            return _keep(text, before, f"verification failed: {difference}", mismatch=True)
    if dtype.itemsize == 2 or rounded(problem.leaves[0].device, dtype):
        weights = [n for n, operand in enumerate(problem.operands) if operand.constant]
        worse = less_accurate(whole, module, problem.leaves, problem.positive, weights)
        if worse is not None:
            return _keep(text, before, worse)
    steps = tuple(line for plan in choice.candidate.plans for line in step_lines(plan))
    return Decision(
        "rewritten",
        choice.reason,
        text,
        before,
        choice.candidate.cost.timed(choice.seconds),
        steps,
        choice.candidate.plans,
        module,
        measured=choice.measured,
        once=choice.candidate.once,
        alternatives=alternatives,
        above_one=choice.candidate.above_one,
    )


def _chosen(problem: Problem, region: Region, context: Context) -> tuple[Problem, Choice]:
    """The choice that an earlier process made of the same problem; or one made now, by a calibrated time model."""
    options = context.options
    inner = judge(options, problem.leaves[0].device, convolves(region))
    tune = options.tune if can_be_timed(problem) else False
    key = key_of(problem, _printed(region), tune, inner.name if inner else "eager")
    choice = recall(problem, key)
    if choice is not None:
        return problem, choice
    if tune is not False:
        problem = problem_of(region, context, calibrate=True)
    choice = leanest(problem, tune, inner) if problem.lean and tune is not False else choose(problem, tune, inner)
    remember(problem, key, choice)
    return problem, choice


def _alternatives(problem: Problem, region: Region, choice: Choice) -> Alternatives:
    """As written, as chosen and the best others, as functions of the sizes."""
    rivals = choice.rivals or candidates(problem)
    shapes = [op.meta["val"].shape for op in (*region.carriers, *region.ops)]
    sizes = {symbol(size): size for shape in shapes for size in shape if not isinstance(size, int)}
    elsewhere = [planned_at(problem, sizes, factor) for factor in (1 / 8, 8)]
    others = [one for one in (*rivals, *elsewhere) if one is not None and one is not choice.candidate]
    ways = [choice.candidate, *others] if choice.candidate is not None else others
    return Alternatives(
        (region.ops, *(one.ops for one in ways)),
        int(choice.candidate is not None),
        problem.model,
        problem.itemsize,
        problem.training,
        problem.objective,
        problem.checkpoint,
    )


def _less_work(problem: Problem, region: Region) -> tuple[Problem, Choice]:
    """The choice for the same convolution with less around it, once scalings are folded into its kernel.

    Nothing is measured, so nothing else may change: a convolution stays one, whatever a matmul is predicted to take.
    """
    found = as_written(problem, convolves=convolves(region))
    return problem, by_prediction(problem, found, margin=1.0) if found else kept_as_written(problem)


def problem_of(region: Region, context: Context, calibrate: bool = False) -> Problem:
    """A region as a problem to choose for, by a time model that is calibrated now or as it is."""
    fakes = tuple(context.fakes[leaf] for leaf in region.leaves)
    leaves = at_hints(fakes)
    given = [
        Operand(constant=leaf in context.constant, needs_grad=context.training and fake.requires_grad)
        for leaf, fake in zip(region.leaves, leaves, strict=True)
    ]
    known = list(given)
    for leaf in region.derived:
        read = [known[n] for n in leaf.sources]
        known.append(Operand(all(o.constant for o in read), any(o.needs_grad for o in read)))
    problem = Problem(
        expression=region.expression,
        operands=tuple(known),
        leaves=leaves,
        derived=region.derived,
        output=context.fakes[region.output],
        written=_extracted(region, context, region.nodes),
        cost=_as_written(region, context, calibrate),
        objective=context.options.objective,
        memory_limit=context.options.memory_limit,
        training=context.training,
        fold=context.fold and not region.precision,
        model=context.model(leaves[0].device, region.precision or leaves[0].dtype, calibrate),
        precision=region.precision,
        symbolic=fakes if any(map(is_symbolic, fakes)) else (),
        checkpoint=context.checkpoint,
        matmuls=rounded(leaves[0].device, leaves[0].dtype) == {"conv"} and not convolves(region),
        guards=context.guards,
    )
    return replace(problem, cost=replace(problem.cost, saved=_saved(problem))) if problem.saves else problem


def _extracted(region: Region, context: Context, nodes: Sequence[Node]) -> GraphModule:
    """Some nodes that compute the value of a region from its leaves, as they are written."""
    device = context.fakes[region.leaves[0]].device
    autocast = (device, region.precision) if region.precision else None
    return extract(context.gm, nodes, region.leaves, context.fakes, autocast)


def _saved(problem: Problem) -> int:
    return saved_bytes(problem.written, problem.leaves)


def _as_written(region: Region, context: Context, calibrate: bool = False) -> Cost:
    """The cost of a region's own nodes."""
    return cost_of(*priced(region, context, calibrate), context.checkpoint)


def priced(region: Region, context: Context, calibrate: bool = False) -> tuple[list[Node], TimeModel, int, bool]:
    """A region's own ATen nodes that run in every call, and by what they are priced."""
    leaf = context.fakes[region.leaves[0]]
    dtype = region.precision or leaf.dtype
    model = context.model(leaf.device, dtype, calibrate)
    ops = list(region.ops)
    if context.fold and not region.precision:
        once = {op for node in region.nodes if node in context.constant for op in context.ops[node]}
        ops = [op for op in ops if op not in once]
    return ops, model, dtype.itemsize, context.training


def _keep(text: str, cost: Cost, reason: str, decision: str = "kept", **more: Any) -> Decision:
    return Decision(decision, reason, text, cost, cost, **more)


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _printed(region: Region) -> tuple[str, ...]:
    """How a region is written: its ATen ops with their arguments, shapes and strides; tensors by their place."""
    places = {node: n for n, node in enumerate((*region.carriers, *region.ops))}

    def place(node: Node) -> Any:
        return f"%{places.get(node, '?')}"

    def line(op: Node) -> str:
        value = op.meta["val"]
        return f"{op.target} {map_arg((op.args, op.kwargs), place)} {value.shape} {value.stride()} {value.dtype}"

    return tuple(map(line, region.ops))


def _signature(region: Region, context: Context) -> object:
    """All that a decision depends on: what is computed, how it is written, and what its leaves are."""
    leaves = tuple(
        (str(f.shape), str(f.stride()), f.dtype, f.device, f.requires_grad, leaf in context.constant)
        for leaf, f in ((leaf, context.fakes[leaf]) for leaf in region.leaves)
    )
    return canonical(region.expression), leaves, region.derived, _printed(region), region.precision
