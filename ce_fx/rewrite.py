"""The pure pass, on any FX graph: read, lift, decide, and put the better evaluation in place."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import SymInt
from torch.fx import GraphModule, Node
from tqdm import tqdm

from ce_fx.at_sight import holds_product, nothing_to_reorder
from ce_fx.capture.asserts import asserted, without_asserts
from ce_fx.capture.floats import floats_again, floats_as_tensors, users_of_floats
from ce_fx.capture.functional import in_place_again, out_of_place, writes_to_slices
from ce_fx.capture.geometry import symbols_of_geometry, with_numbers
from ce_fx.capture.modules import open_modules
from ce_fx.capture.reading import Reading, ambient, read
from ce_fx.checkpointing import with_recomputation
from ce_fx.decide import Context, Decision, decide, decide_again, unchanged, undecided
from ce_fx.guards import Guards, guard_above_one, guard_close, guard_equal, has_given_ranges
from ce_fx.inner import recompute_as_eager
from ce_fx.lift.region import Region, Regions, whole_parts
from ce_fx.lift.regions import find_regions
from ce_fx.lower.extract import copy_of, inline
from ce_fx.lower.recompute import PREFIX, has_bodies, recompute, take_bodies
from ce_fx.options import Options
from ce_fx.plan.time_model import TimeModel
from ce_fx.report.graph import GraphReport, together
from ce_fx.rows import graph_report, row_of
from ce_fx.tune.calibrate import time_model
from ce_fx.tune.cost import rest_of_graph

log = logging.getLogger(__name__)

STOPPED = "planning was stopped by Ctrl-C"
"""The reason of layers that are kept because of that."""

LEAST_GAIN = 0.03
"""A graph that gains a smaller share of its time is handed on untouched."""


def rewrite(gm: GraphModule, example_inputs: Sequence[Any], **options: Any) -> GraphModule:
    """Rewrite the multilinear regions of an FX graph.

    Args:
        gm: a graph from Dynamo, `torch.export`, `symbolic_trace` or written by hand. It is not changed.
        example_inputs: one value for each placeholder, in order: tensors (real or fake), numbers.
        **options: those of `optimize`.

    A graph carries no guards: the result holds for the sizes of the example inputs (symbolic ones for any size).

    Returns:
        A graph module with the same placeholders, the same parameters (by reference) and the same values. Where
        nothing is gained its graph is the same, node by node.

    Raises:
        CeFxError: an option is unknown or has a bad value.
    """
    chosen = Options.of(options)
    fresh = copy_of(gm)
    opened = open_modules(fresh)
    layers = rewrite_graph(fresh, example_inputs, chosen).layers
    recompute_as_eager(fresh, PREFIX)
    same = all(layer.decision != "rewritten" for layer in layers) and not has_bodies(fresh)
    return copy_of(gm) if opened and same else fresh


def rewrite_graph(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, bodies: bool = True, guards: Guards = "none"
) -> GraphReport:
    """Rewrite a graph in place; where nothing is gained, or something goes wrong, it stays untouched.

    Args:
        gm: the graph.
        example_inputs: one value for each placeholder, in order.
        options: those of `optimize`.
        bodies: whether the bodies of activation checkpoints are rewritten, too.
        guards: what may be asked of symbolic sizes; a graph of Dynamo's is captured anew where that does not hold.

    Returns:
        What was decided for each multilinear stretch, in graph order, and what else runs.
    """
    may_guard = guards != "none" and not has_given_ranges(example_inputs)
    geometry = symbols_of_geometry(gm.graph, example_inputs) if may_guard else {}
    work, reading = _read(gm, example_inputs, geometry)
    constant = weight_only(work, example_inputs, reading)
    found = find_regions(work.graph, reading, constant)
    context = Context(
        gm=work,
        options=options,
        fakes=dict(reading.fakes),
        constant=constant,
        model=partial(model_of, options),
        training=torch.is_grad_enabled(),
        ops=reading.ops,
        guards=may_guard,
        close=may_guard and guards == "close",
    )
    decisions = _worthwhile(_decisions(found, context), reading, context)
    if context.checkpoint:
        decisions = with_recomputation(decisions, context)
    changed = any(decision.candidate or decision.recompute for _, decision in decisions)
    if changed:
        guard_equal(geometry.values())
    if context.guards:
        guard_above_one([factor for _, decision in decisions for factor in decision.above_one])
    regions = [decision.alternatives for _, decision in decisions if decision.alternatives is not None]
    if context.close and regions:
        try:
            guard_close(regions, _rest(decisions, reading, context), example_inputs)
        except Exception as error:  # a plan may then be kept for sizes where another is better, and nothing else
            log.warning("a plan holds for all sizes: %s: %s", type(error).__name__, error)
    inner = _bodies(gm, work, example_inputs, reading, options) if bodies else []
    if any(row.decision == "rewritten" for _, report in inner for row in report.layers):
        guard_equal(geometry.values())  # a body is rewritten for the sizes that follow from this geometry
    result = _reported(found, decisions, reading, context, inner)
    if changed:
        _replace(work, decisions)
        if work is not gm:
            in_place_again(work.graph)
            floats_again(work.graph)
            take_bodies(gm, work)
            gm.graph = work.graph
    return result


def _reported(
    found: Regions,
    decisions: Sequence[tuple[Region, Decision]],
    reading: Reading,
    context: Context,
    bodies: Sequence[tuple[Node, GraphReport]],
) -> GraphReport:
    """What is reported; where that fails the decisions alone, for nobody's model runs slower because of a table."""
    try:
        return graph_report(found, decisions, reading, context, bodies)
    except Exception as error:
        details = log.isEnabledFor(logging.DEBUG)
        log.warning("the report of a graph is not whole: %s: %s", type(error).__name__, error, exc_info=details)
    rows = [row_of(str(region.output), decision) for region, decision in decisions]
    return together([GraphReport(tuple(rows)), *(inner for _, inner in bodies)])


def _read(
    gm: GraphModule, example_inputs: Sequence[Any], geometry: Mapping[Node, SymInt]
) -> tuple[GraphModule, Reading]:
    """The graph to work on, and its reading: the graph itself, or a copy in other words that can be lifted."""
    if geometry or asserted(gm.graph) or writes_to_slices(gm.graph) or users_of_floats(gm.graph):
        work = copy_of(gm)
        numbers = with_numbers(symbols_of_geometry(work.graph, example_inputs)) if geometry else False
        reading = read(work, example_inputs)
        changes = (
            numbers,
            without_asserts(work.graph),
            floats_as_tensors(work.graph, reading),
            out_of_place(work.graph, reading),
        )
        if any(changes):
            return work, read(work, example_inputs)
    return gm, read(gm, example_inputs)


def _replace(gm: GraphModule, decisions: Sequence[tuple[Region, Decision]]) -> None:
    """Put what was chosen in place; if anything goes wrong the graph is what it was."""
    before = copy_of(gm).graph
    replaced: dict[Node, Node] = {}
    try:
        for region, decision in decisions:
            nodes: Sequence[Node] = region.nodes
            result = region.output
            if decision.candidate is not None:
                leaves = [replaced.get(leaf, leaf) for leaf in region.leaves]
                nodes, result = inline(decision.candidate, leaves, region.output, region.nodes)
                log.debug("rewrote %s as %s", region.output, decision.expression)
            if decision.recompute:
                result = recompute(gm, nodes, result)
            replaced[region.output] = result
        gm.graph.lint()
    except Exception:
        gm.graph = before
        raise
    finally:
        gm.recompile()


def _decisions(found: Regions, context: Context) -> list[tuple[Region, Decision]]:
    """A decision for each region that holds a product.

    Those with something to choose come first: they may calibrate the time model, by which all are then priced.
    """
    verbose = context.options.verbose
    hidden = None if verbose is None else not verbose  # tqdm's None: hidden unless on a terminal
    slow = 2.0 if verbose is None else 0.0  # seconds until it shows
    order = sorted(enumerate(found.regions), key=lambda each: _is_kept_at_sight(each[1]))
    with tqdm(order, desc="ce_fx: planning", unit="region", disable=hidden, delay=slow, leave=False) as bar:
        decided = {
            number: _until_stopped(region, found.again.get(region.output, ()), context) for number, region in bar
        }
    return [pair for _, pairs in sorted(decided.items()) for pair in pairs]


def _is_kept_at_sight(region: Region) -> bool:
    try:
        return nothing_to_reorder(region) is not None
    except Exception:  # `decide` comes to it again, and says so in the report
        return False


def _until_stopped(region: Region, wider: Sequence[Region], context: Context) -> list[tuple[Region, Decision]]:
    """The decision for a region; after Ctrl-C what is not decided yet is kept, and what is decided holds.

    Planning can take long, and is not what a user wants to lose a run for. A second Ctrl-C comes when the model runs.
    """
    try:
        if not context.stopped:
            decided = _decided(region, context)
            if len(decided) == 1 and decided[0][0] is region:
                return [decide_again(*decided[0], wider, context)]
            return decided
    except KeyboardInterrupt:
        context.stopped = True
        warnings.warn(f"ce_fx: {STOPPED}; what was planned before is used", stacklevel=2)
    decision = undecided(region, context, STOPPED)
    return [] if decision is None else [(region, decision)]


def _decided(region: Region, context: Context) -> list[tuple[Region, Decision]]:
    """The decision for a region; where a sum is kept as written, those for its parts if one of them gains."""
    decision = decide(region, context)
    if decision is None:
        return []
    if decision.candidate is None and len(region.expression.terms) > 1 and not decision.mismatch:
        whole = [one for part in region.parts for one in whole_parts(part) if holds_product(one)]
        parts = [pair for part in whole for pair in _decided(part, context)]
        if any(part.candidate is not None for _, part in parts):
            return parts
    return [(region, decision)]


def _worthwhile(
    decisions: list[tuple[Region, Decision]], reading: Reading, context: Context
) -> list[tuple[Region, Decision]]:
    """The decisions; all "kept" where the graph as a whole would gain less time than can be told from none."""
    gain = sum(decision.before.seconds - decision.after.seconds for _, decision in decisions)
    if context.options.objective != "time" or not any(decision.candidate for _, decision in decisions):
        return decisions
    whole = _rest(decisions, reading, context)() + sum(decision.before.seconds for _, decision in decisions)
    if gain >= LEAST_GAIN * whole:
        return decisions
    reason = f"the whole graph would gain {gain / whole:.1%} of its time"
    return [(region, unchanged(decision, reason)) for region, decision in decisions]


def _rest(decisions: Sequence[tuple[Region, Decision]], reading: Reading, context: Context) -> Callable[[], float]:
    """Gives the predicted seconds of what no region holds; no FLOPs and no memory, by these objectives."""
    if context.options.objective != "time":
        return lambda: 0.0
    inside = {node for region, _ in decisions for node in region.nodes}
    others = [op for node, ops in reading.ops.items() if node not in inside for op in ops]
    leaf = context.fakes[decisions[0][0].leaves[0]]
    model = context.model(leaf.device, leaf.dtype, False)
    return lambda: rest_of_graph(others, model, leaf.element_size(), context.training)


def _bodies(
    gm: GraphModule, work: GraphModule, example_inputs: Sequence[Any], reading: Reading, options: Options
) -> list[tuple[Node, GraphReport]]:
    """Rewrite the bodies of activation checkpoints, which are graphs of their own: no region reaches across.

    Nothing in them is folded: they get what is computed outside as inputs only, and all of them is recomputed. A body
    that is called twice, maybe with other sizes, is left alone.

    Args:
        gm: the module that the bodies belong to.
        work: a graph of the same bodies, which was read.
        example_inputs: one value for each placeholder of it.
        reading: what it computes.
        options: those of `optimize`.

    Returns:
        The nodes of `work` that call a body that was rewritten, and what was decided in it.
    """
    given = dict(zip(work.graph.find_nodes(op="placeholder"), example_inputs, strict=False))
    calls = work.graph.find_nodes(op="call_function", target=torch.ops.higher_order.tag_activation_checkpoint)
    times = Counter(str(node.args[0].target) for node in calls)
    found = []
    for node in calls:
        body, *args = node.args
        name, state = str(body.target), reading.states.get(node)
        old = gm.get_submodule(name)
        if state != ambient() or times[name] > 1 or not isinstance(old, GraphModule):
            continue
        inputs = [given.get(arg, reading.fakes.get(arg)) if isinstance(arg, Node) else arg for arg in args]
        new = copy_of(old)
        found.append((node, rewrite_graph(new, inputs, replace(options, fold=False, checkpoint=False))))
        gm.set_submodule(name, new)
    return found


def weight_only(gm: GraphModule, example_inputs: Sequence[Any], reading: Reading) -> set[Node]:
    """Own nodes whose value depends on weights only."""
    constant: set[Node] = set()
    values = iter(example_inputs)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            value = next(values, None)
            static = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
            if isinstance(value, torch.nn.Parameter) or static:
                constant.add(node)
        elif node.op == "get_attr" or (node.all_input_nodes and all(n in constant for n in node.all_input_nodes)):
            constant.add(node)
    return constant


def model_of(options: Options, device: torch.device, dtype: torch.dtype, calibrate: bool) -> TimeModel:
    """The time model of a device and dtype; with `calibrate` it may be measured now."""
    return time_model(device, dtype, measure=calibrate, verbose=options.verbose)
