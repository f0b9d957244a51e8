"""What could replace one region: several plans, each lowered and priced as it would run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TypeAlias

from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from ce_fx.algebra import Expression
from ce_fx.algebra.canonical import canonical
from ce_fx.algebra.program import Program
from ce_fx.capture.replay import replayed
from ce_fx.lower.multiply import CONVS
from ce_fx.lower.precision import in_precision, is_cast
from ce_fx.lower.recompute import saved_bytes
from ce_fx.lower.strides import order_of, same_format, same_strides, with_ones, with_order
from ce_fx.lower.sums import candidate
from ce_fx.lower.value import LoweringError
from ce_fx.plan.candidates import make_plans
from ce_fx.plan.kinds import kind_of
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.ops import Op
from ce_fx.plan.plan import Plan, PlanError
from ce_fx.plan.planner import make_plan, plan_of
from ce_fx.plan.shared import shared_plans
from ce_fx.plan.sums import Prices, build, networks, programs, with_steps
from ce_fx.plan.tree import Tree, splits_of, step_of
from ce_fx.sizes import hint
from ce_fx.tune.any_size import read_for_any_size
from ce_fx.tune.cost import Cost, check_limit, cost_of, every_time
from ce_fx.tune.problem import Problem

COUNT = 12
"""Plans that are lowered and priced."""

_FEWEST, _OPERANDS = 4, 400
"""Plans that are lowered in any case, and operands of all that are: one takes about two milliseconds."""

_HELD = 4
"""Plans that are read on symbolic sizes."""

_FORMS = 5
"""Ways to factor a sum, of which plans are lowered and priced."""

Draft: TypeAlias = tuple[Program, tuple[Plan, ...]]
"""How a sum is factored, and a plan for each of its products."""

SLOWER = 1.1
"""Times the fastest, which saving memory in training may cost."""

_HOPELESS = 3.0  # times the predicted cost of the best draft, from which one is not lowered
_PEAK = 4, 1 << 26  # a candidate may need this many times the memory of what is written, and 64 MB


@dataclass(frozen=True)
class Lowered:
    """One way to evaluate a region.

    Attributes:
        program: its sum, factored or as it is.
        plans: one for each product of each step.
        module: what would run.
    """

    program: Program
    plans: tuple[Plan, ...]
    module: GraphModule


@dataclass(frozen=True)
class Candidate(Lowered):
    """A way to evaluate a region, read and priced.

    Attributes:
        cost: of its ATen nodes, copies included.
        ops: these nodes.
        once: nodes that depend on weights only, where they run in every call all the same.
        above_one: factors of symbolic sizes that must be above 1 for it to hold.
    """

    cost: Cost
    ops: tuple[Node, ...] = ()
    once: tuple[Node, ...] = ()
    above_one: tuple[SymInt, ...] = ()


def candidates(problem: Problem) -> list[Candidate]:
    """What could replace a region, the best by its objective first; priced as emitted.

    Where the memory of training counts these are those that take at most 1.1 times as long as the fastest, as written
    included; perhaps there is none.

    Raises:
        PlanError: no order keeps to the memory limit.
        LoweringError: none has an exact form in torch ops.
    """
    if not problem.lean:
        return _affordable(problem, drafts(problem))
    return lean_candidates(problem, SLOWER)


def lean_candidates(problem: Problem, slower: float) -> list[Candidate]:
    """What takes little memory in training, or little time, the least memory first.

    Args:
        problem: whose objective is memory.
        slower: times the fastest, as written included, that one may take at most by prediction.

    Raises:
        As `candidates`.
    """
    found = _affordable(problem, [*drafts(problem), *drafts(replace(problem, objective="time"))])
    limit = slower * min([problem.cost.seconds, *(one.cost.seconds for one in found)])
    return [one for one in found if one.cost.seconds <= limit]


def as_written(problem: Problem, convolves: bool) -> list[Candidate]:
    """As `candidates`, with what runs in every call as a convolution where that is written, else as matmuls.

    Args:
        problem: the region.
        convolves: whether a convolution is written.
    """
    same = [(program, tuple(_in_one_way(plan, convolves) for plan in plans)) for program, plans in drafts(problem)]
    found = _affordable(problem, same)
    return [one for one in found if any(n.target in CONVS.values() for n in one.module.graph.nodes) == convolves]


def _in_one_way(plan: Plan, convolves: bool) -> Plan:
    """A plan with each step in the way of its kind; where it is to convolve, a matmul is a 1x1 convolution."""
    network = plan.network
    joined = [(a, b) for a, b in splits_of(plan.tree) if (a | b) & ~network.constant]
    matmuls = [a | b for a, b in joined if kind_of(step_of(network, a, b), network) == "mm"]
    return replace(plan, ways=dict.fromkeys(matmuls, "mm_conv") if convolves else {})


def _in_matmuls(plan: Plan) -> Plan:
    """A plan without the 1x1 convolutions that could be matmuls."""
    network = plan.network
    steps = {a | b: step_of(network, a, b) for a, b in splits_of(plan.tree)}
    pixels = {subset: "matmul" for subset, step in steps.items() if kind_of(step, network) == "pixels"}
    ways = {subset: _MATMULS.get(way, way) for subset, way in plan.ways.items()}
    return replace(plan, ways={**ways, **pixels})


_MATMULS = {"mm_conv": "mm", "unfold_conv": "unfold", "taps_conv": "taps"}


def _affordable(problem: Problem, given: Sequence[Draft]) -> list[Candidate]:
    """Drafts lowered and priced, the best by the objective first; none that needs far more memory than is written.

    Of symbolic sizes they are priced by the hints, and a few of the best are read on symbols, which takes ten times as
    long.
    """
    at_hints = replace(problem, symbolic=())
    found = _priced(at_hints, given)
    affordable = [one for one in found if one.cost.peak <= _PEAK[0] * problem.cost.peak + _PEAK[1]] or found
    if problem.symbolic:
        order = different(sorted(affordable, key=lambda one: one.cost.of(problem.objective)), len(affordable))
        affordable = _priced(problem, [(one.program, one.plans) for one in order], _HELD)
    return sorted(affordable, key=lambda one: one.cost.of(problem.objective))


def _priced(problem: Problem, given: Sequence[Draft], most: int = COUNT) -> list[Candidate]:
    """The first drafts that have an exact form, lowered and priced.

    Raises:
        LoweringError: there are drafts, and none has one.
    """
    found: list[Candidate] = []
    error = None
    for program, plans in given:
        try:
            found.append(candidate_of(problem, program, plans))
        except LoweringError as reason:
            error = reason
        if len(found) == most:
            break
    if not found and error is not None:
        raise error
    return found


def different(found: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best candidates; of those that are predicted to take the same time only the first, while there are others.

    Trees that differ in the roles of height and width, or in the order of small products of weights, are alike: six of
    them would leave no place for another idea that is predicted to be 1 % slower and is twice as fast.
    """
    times: set[str] = set()
    first: list[Candidate] = []
    alike: list[Candidate] = []
    for one in found:
        time = f"{one.cost.seconds:.3g}"
        (alike if time in times else first).append(one)
        times.add(time)
    return [*first, *alike][:count]


def candidate_of(problem: Problem, program: Program, plans: Sequence[Plan]) -> Candidate:
    """Lower a program and the plans of its products, with the strides that the result has as written, and price it.

    Raises:
        LoweringError: a step has no exact form, the result would have another dtype or device, or not hold for all
            symbolic sizes, or a tensor that is made on the way is over the memory limit.
    """
    readings = []

    def result_of(module: GraphModule) -> Tensor:
        readings.append(replayed(module, problem.leaves))
        fake: Tensor = readings[-1].fakes[_last(module)]
        return fake

    one = _lowered(problem, program, plans, result_of)
    reading = readings[-1]
    above_one: tuple[SymInt, ...] = ()
    if problem.symbolic:
        reading, above_one = read_for_any_size(one.module, problem.symbolic, problem.output, problem.guards)
    inputs = one.module.graph.find_nodes(op="placeholder")
    done = {reading.values[node] for node, operand in zip(inputs, problem.operands, strict=False) if operand.constant}
    nodes = [node for group in reading.ops.values() for node in group if not is_cast(node)]
    if problem.memory_limit is not None:
        check_limit(nodes, problem.memory_limit)
    rest = every_time(nodes, done)
    once = () if problem.fold else tuple(node for node in nodes if node not in set(rest))
    nodes = rest if problem.fold else nodes
    cost = cost_of(nodes, problem.model, problem.itemsize, problem.training, problem.checkpoint)
    if problem.saves:
        cost = replace(cost, saved=saved_bytes(one.module, problem.leaves))
    return Candidate(one.program, one.plans, one.module, cost, tuple(nodes), once, above_one)


def to_be_timed(problem: Problem, program: Program, plans: Sequence[Plan], leaves: Sequence[Tensor]) -> Lowered:
    """As `candidate_of` without the reading and the price, which take longest; maybe not for all symbolic sizes.

    Args:
        problem: the region.
        program: its sum, factored or as it is.
        plans: for its products.
        leaves: real tensors; one run of them tells the layout.

    Raises:
        LoweringError: a step has no exact form, or torch does not run it here.
    """

    def run(module: GraphModule) -> Tensor:
        try:
            result: Tensor = module(*leaves)
        except RuntimeError as error:  # no memory, or no kernel for this dtype
            raise LoweringError(f"torch does not run it ({error})") from error
        return result

    return _lowered(problem, program, plans, run)


def _lowered(
    problem: Problem, program: Program, plans: Sequence[Plan], result_of: Callable[[GraphModule], Tensor]
) -> Lowered:
    """Lower a program and give its result the layout that it has as written.

    Args:
        problem: the region.
        program: its sum, factored or as it is.
        plans: for its products.
        result_of: a module -> its result, real or fake.
    """
    order = order_of(problem.output)
    if problem.matmuls:
        plans = list(map(_in_matmuls, plans))
    module = candidate(program, plans, problem.leaves, problem.derived, order)
    if problem.precision is not None:
        weights = [n for n, operand in enumerate(problem.operands) if operand.constant]
        in_precision(module, problem.leaves, weights, problem.precision)
    ones = tuple(d for d, size in enumerate(problem.output.shape) if hint(size) == 1)
    rules = ((same_strides, with_order), (same_format, partial(with_ones, ones=ones)))
    result = result_of(module)
    if (result.dtype, result.device) != (problem.output.dtype, problem.output.device):
        raise LoweringError(f"the plan would give {result.dtype} on {result.device}")
    for same, emit in rules:
        if same(result, problem.output):
            continue
        if order is None:
            raise LoweringError("the result as written is not dense in memory")
        last = _last(module)
        with module.graph.inserting_before(module.graph.output_node()):
            module.graph.output_node().args = (emit(module.graph, last, order),)
        module.recompile()
        result = result_of(module)
    return Lowered(program, tuple(plans), module)


def _last(module: GraphModule) -> Node:
    (node,) = module.graph.output_node().all_input_nodes
    return node


def networks_of(problem: Problem, program: Program) -> list[Network]:
    """The products of each step of a program."""
    operands = with_steps(program, problem.operands)
    return [network for step in program.expressions for network in networks(step, operands)]


Order: TypeAlias = tuple[Tree, str, Mapping[int, str], bool]
"""A tree, how it was found, the ways of its steps, and whether channels come last: a plan without any sizes."""


def plans_on(problem: Problem, program: Program, orders: Sequence[Order]) -> list[Plan]:
    """The plans that evaluate the products of a program in given orders."""
    plans = []
    for network, (tree, method, ways, channels_last) in zip(networks_of(problem, program), orders, strict=True):
        plan = plan_of(network, tree, method, problem.objective, problem.mode, problem.model, dict(ways))
        plans.append(replace(plan, channels_last=channels_last))
    return plans


def drafts(problem: Problem) -> list[Draft]:
    """Programs with plans: the best of each program, and of the product that takes longest the others, too.

    Raises:
        PlanError: no order keeps to the memory limit.
    """
    mode = problem.mode
    limit = None if problem.memory_limit is None else problem.memory_limit // problem.itemsize
    known: dict[object, list[Plan]] = {}

    def plans_of(network: Network, count: int) -> list[Plan]:
        key = (canonical(Expression(network.output, (network.term,))), network.operands, count)
        if key not in known:
            if problem.objective == "time":
                known[key] = make_plans(network, count=count, mode=mode, time_model=problem.model, memory_limit=limit)
            else:
                known[key] = [make_plan(network, objective=problem.objective, mode=mode, memory_limit=limit)]
        return [replace(plan, network=network) for plan in known[key]]

    forms = _forms(problem, lambda network: plans_of(network, 1)[0].cost)
    found: list[tuple[Draft, float]] = []
    for program in forms:
        each = networks_of(problem, program)
        best = [plans_of(network, 1)[0] for network in each]
        if not each:
            found.append(((program, ()), 0.0))
            continue
        widest = max(range(len(each)), key=lambda n: (each[n].n > 2, best[n].cost))
        count = COUNT if program is forms[0] else max(2, COUNT // len(forms))
        shared = None
        if program is forms[0] or len(program.steps) == 1:  # the best form, and every product alone
            shared = shared_plans(
                each, objective=problem.objective, mode=mode, time_model=problem.model, memory_limit=limit
            )
        if shared is not None:
            found.append(((program, tuple(shared[0])), shared[1]))
        for plan in plans_of(each[widest], count):
            plans = tuple(plan if n == widest else one for n, one in enumerate(best))
            found.append(((program, plans), sum(plan.cost for plan in plans)))
    return _promising(found)


def _promising(found: list[tuple[Draft, float]]) -> list[Draft]:
    """The drafts whose products cost least, the best of each program first; lowering one takes a tenth of a second."""
    limit = _HOPELESS * min(cost for _, cost in found)
    first = {id(program): n for n, ((program, _), _) in reversed(list(enumerate(found)))}
    order = sorted(range(len(found)), key=lambda n: (n not in first.values(), found[n][1]))
    operands = max(sum(plan.network.n for plan in plans) for (_, plans), _ in found)
    count = min(COUNT, max(_FEWEST, _OPERANDS // max(1, operands)))
    return [found[n][0] for n in order if found[n][1] <= limit or n == 0][:count]


def _forms(problem: Problem, product: Callable[[Network], float]) -> list[Program]:
    """The sum factored in different ways, the best by the objective first."""
    expression, leaves = problem.expression, len(problem.operands)
    if len(expression.terms) == 1:
        alone = build(expression, (0,), leaves)
        assert alone is not None
        return [alone]

    def price(network: Network) -> float:
        try:
            return product(network)
        except PlanError:  # over the memory limit
            return inf

    def total(parts: int, elements: int, result: Operand) -> float:
        if problem.objective == "flops" or (problem.fold and result.constant):
            return 0.0
        if problem.objective == "memory":
            return float(elements)
        op = Op("add", 0, 1, 1, elements, 3 * elements) if parts > 1 else Op("copy", 0, 1, 1, elements, 2 * elements)
        return problem.model.seconds([op] * max(1, parts - 1), 2 if result.needs_grad and problem.training else 0)

    prices = Prices(price, total, problem.objective == "memory" and not problem.training)
    return programs(expression, problem.operands, prices, _FORMS)
