"""What is reported of one graph: a row for each multilinear stretch and for what could not be counted, and the rest."""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ce_fx.at_sight import nothing_to_reorder
from ce_fx.capture.reading import Reading
from ce_fx.decide import Context, Decision
from ce_fx.lift.region import Region, Regions
from ce_fx.lift.regions import begins_behind
from ce_fx.lower.price import counted, is_convolution, ops_of_nodes
from ce_fx.report.graph import Elsewhere, GraphReport, together
from ce_fx.report.layer import LayerReport
from ce_fx.report.names import kind_of_layer, layer_name, value_name
from ce_fx.report.product import Product, lifted, planned
from ce_fx.sizes import hint, known
from ce_fx.tune.cost import Cost, cost_of, rest_of_graph, work_of

log = logging.getLogger(__name__)

aten = torch.ops.aten

_BY_POSITION = {"mul", "add", "sum", "copy"}
"""Families of ops without a contraction."""

_HEAVY = re.compile(
    r"^(?!linalg_norm$|linalg_vector_norm$|linalg_diagonal$|fft_i?fftshift$|fft_r?fftfreq$).*?"
    r"(?<![^_])(\w*mm|\w*mv|\w*dot|matmul|linear|conv\w*|lstm|gru|rnn|attention|transformer|trilinear|linalg|cholesky|lu"
    r"|qr|\w*qrf|\w*mqr|svd|\w*solve|\w*inverse|\w*det|matrix_exp|matrix_power|fft\d?|i?stft|[cp]dist|cov|corrcoef"
    r"|embedding_bag)(_|$)"
)
"""The names of ATen ops that have multiply-adds, by a word in them; unknown are those without a formula."""


def graph_report(
    found: Regions,
    decisions: Sequence[tuple[Region, Decision]],
    reading: Reading,
    context: Context,
    bodies: Sequence[tuple[Node, GraphReport]] = (),
) -> GraphReport:
    """What is reported of one graph.

    Args:
        found: its regions and refusals.
        decisions: what was decided for each region that holds a product.
        reading: its nodes in ATen ops.
        context: what the decisions shared.
        bodies: nodes that call graphs of their own, with what is reported of these.

    Returns:
        The rows in graph order, and the ops that no row holds.
    """
    order = {node: n for n, node in enumerate(context.gm.graph.nodes)}
    inside = {node for region, _ in decisions for node in region.nodes}
    called = {node for node, _ in bodies}
    rows = [(order[region.output], _row(region, decision, reading, context)) for region, decision in decisions]
    refused = {node: one.reason for node, one in found.refusals.items() if not _only_counts(node, reading)}
    for node, refusal in refused.items():
        why = _unknown(node, reading) or refusal
        rows.append((order[node], _alone([node], "refused", why, reading, context)))
    outside = [node for node in order if node not in {*inside, *refused, *called}]
    unread = _unread(outside, reading)
    for nodes, reason in unread:
        rows.append((order[nodes[0]], _alone(nodes, "refused", reason, reading, context)))
    taken = {node for nodes, _ in unread for node in nodes}
    rest = []
    for node in outside:
        if node in taken or node not in reading.ops:
            continue
        sized = filter(_is_sized, reading.ops[node])
        if any(op.macs and op.family not in _BY_POSITION for op in ops_of_nodes(sized)):
            rows.append((order[node], _alone([node], "kept", "not multilinear", reading, context)))
        else:
            rest.append(node)
    rows += [(order[node], row) for node, inner in bodies for row in inner.layers]
    own = GraphReport(
        tuple(row for _, row in sorted(rows, key=lambda pair: pair[0])),
        _elsewhere([reading.ops[node] for node in rest], context),
        _bytes(op for ops in reading.ops.values() for op in ops),
    )
    return together([own, *(GraphReport((), inner.elsewhere, inner.bytes) for _, inner in bodies)])


def _only_counts(node: Node, reading: Reading) -> bool:
    """Whether a node computes integers or one number, and multiplies nothing: no layer.

    What counts a batch norm's batches does, and the cast of a number that scales.
    """
    ops = reading.ops.get(node, ())
    values = [op.meta["val"] for op in ops if _is_tensor(op)]
    whole = not any(value.is_floating_point() or value.is_complex() for value in values)
    one = not any(n.meta["val"].ndim for op in ops for n in (op, *op.all_input_nodes) if _is_tensor(n))
    return bool(values) and (whole or one) and all(map(_is_sized, ops)) and not any(o.macs for o in ops_of_nodes(ops))


def _row(region: Region, decision: Decision, reading: Reading, context: Context) -> LayerReport:
    """A region goes by what multiplies in it: by its convolution and not by the batch norm behind.

    Where it is kept, the report also says what kept it from joining the region before.
    """
    busy = [node for node in region.nodes if any(op.macs for op in ops_of_nodes(reading.ops.get(node, ())))]
    named = busy or list(region.nodes)
    apart = (region.border or begins_behind(region, reading)) if decision.decision == "kept" else None
    rewritten = decision.candidate is not None
    terms, products = _drawn(region, decision, context) if rewritten else ((), ())
    return LayerReport(
        name=layer_name(named),
        expression=decision.expression,
        decision=decision.decision,
        reason="; ".join(filter(None, (decision.reason, apart, _RECOMPUTED if decision.recompute else None))),
        **_numbers(decision.before, decision.after, context),
        **_foldable(region, decision, context),
        plan=decision.plan,
        kind=_kind(named, reading),
        mismatch=decision.mismatch,
        measured=decision.measured,
        can_change=rewritten or (decision.decision == "kept" and nothing_to_reorder(region) is None),
        written=tuple(filter(None, map(_printed, region.ops))),
        terms=terms,
        products=products,
    )


_RECOMPUTED = "recomputed in the backward"


def row_of(name: str, decision: Decision) -> LayerReport:
    """A row of what was decided and nothing else."""
    before, after = decision.before, decision.after
    numbers = (before.flops, after.flops, before.peak, after.peak, before.seconds, after.seconds)
    return LayerReport(name, decision.expression, decision.decision, decision.reason, *numbers, plan=decision.plan)


def _foldable(region: Region, decision: Decision, context: Context) -> dict[str, Any]:
    """What of a row depends on weights only and runs in every call, because `fold=True` was not asked for."""
    if context.training or context.fold or region.precision:
        return {}
    once: Sequence[Node] = decision.once
    if decision.candidate is None:
        nodes = [node for node in region.nodes if node in context.constant]
        fixed = {op for node in nodes for op in context.ops.get(node, ())}
        once = [op for op in region.ops if op in fixed]
    cost = _cost(once, context) if once else None
    if cost is None or not cost.seconds:
        return {}
    return {"foldable_flops": cost.flops, "foldable_time": cost.seconds}


def _alone(nodes: Sequence[Node], decision: str, reason: str, reading: Reading, context: Context) -> LayerReport:
    """A row for nodes that stay as they are; without numbers where they could not be counted."""
    ops = [op for node in nodes for op in reading.ops.get(node, ())]
    cost = None
    unread = any(node in reading.failures for node in nodes)
    if not unread and all(_is_sized(op) and not _is_unknown(op) for op in ops):
        cost = _cost(ops, context)
    numbers = _numbers(cost, cost, context)
    return LayerReport(layer_name(nodes), "", decision, reason, **numbers, kind=_kind(nodes, reading))


def _numbers(before: Cost | None, after: Cost | None, context: Context) -> dict[str, Any]:
    """The numbers of a row as they are before and after."""
    found: dict[str, Any] = {}
    for when, cost in (("before", before), ("after", after)):
        found[f"flops_{when}"] = cost and cost.flops
        found[f"peak_{when}"] = cost and cost.peak
        found[f"time_{when}"] = cost and cost.seconds
        found[f"forward_flops_{when}"] = cost and cost.forward_flops if context.training else None
        found[f"forward_time_{when}"] = cost and cost.forward_seconds if context.training else None
    return found


def _drawn(region: Region, decision: Decision, context: Context) -> tuple[tuple[Product, ...], tuple[Product, ...]]:
    """The products of a region as lifted, and as they will run; nothing where that fails, for it is only shown."""
    names = [value_name(leaf) for leaf in region.leaves]
    weights = [leaf in context.constant for leaf in region.leaves]
    for leaf in region.derived:
        names.append(f"{leaf.kind}({', '.join(names[n] for n in leaf.sources)})")
        weights.append(all(weights[n] for n in leaf.sources))
    steps = 1 + max((f.leaf for plan in decision.plans for f in plan.network.term.factors), default=0)
    all_names = [*names, *(f"sum {n}" for n in range(1, steps - len(names) + 1))]
    constant = dict(enumerate(weights))
    for plan in decision.plans:
        for n, factor in enumerate(plan.network.term.factors):
            constant.setdefault(factor.leaf, bool(plan.network.constant >> n & 1))
    known = [constant.get(n, False) for n in range(len(all_names))]
    try:
        terms = [lifted(term, region.expression.axes, names, weights) for term in region.expression.terms]
        return tuple(terms), tuple(planned(plan, all_names, known) for plan in decision.plans)
    except Exception as error:
        log.debug("the plan of %s cannot be drawn", decision.expression, exc_info=error)
        return (), ()


def _unread(nodes: Iterable[Node], reading: Reading) -> list[tuple[list[Node], str]]:
    """Nodes that compute a tensor in an unknown way, those of one layer together, with the first reason."""
    groups: dict[str, tuple[list[Node], str]] = {}
    for node in nodes:
        reason = _reason(node, reading)
        if reason is not None:
            groups.setdefault(layer_name([node]), ([], reason))[0].append(node)
    return list(groups.values())


def _reason(node: Node, reading: Reading) -> str | None:
    """Why a node's multiply-adds are not known; None where they are, or there are none."""
    if node.op not in ("call_function", "call_method", "call_module") or node.target is operator.getitem:
        return None
    if node in reading.failures:
        promised = node.meta.get("example_value", node.meta.get("val"))
        tensors = [value for value in torch.utils._pytree.tree_leaves(promised) if isinstance(value, Tensor)]
        return reading.failures[node] if tensors else None
    unknown = _unknown(node, reading)
    if unknown is not None:
        return unknown
    return None if all(map(_is_sized, reading.ops.get(node, ()))) else "a size is only known when it runs"


def _unknown(node: Node, reading: Reading) -> str | None:
    """The sentence for a node that runs an op without a formula."""
    unknown = next((op for op in reading.ops.get(node, ()) if _is_unknown(op)), None)
    return None if unknown is None else f"no FLOPs are known of {op_name(unknown)}"


def _is_unknown(op: Node) -> bool:
    """Whether an op may have multiply-adds that no formula counts: one of a user's, or a heavy one of torch's."""
    if not isinstance(op.target, torch._ops.OpOverload):
        return isinstance(op.target, torch._ops.HigherOrderOperator)
    if op.target.namespace not in ("aten", "prims"):
        return True
    return _HEAVY.search(op_name(op)) is not None and not counted(op)


def _is_sized(op: Node) -> bool:
    """Whether there are sizes to count by: those that depend on data have none."""
    values = [n.meta.get("val") for n in (op, *op.all_input_nodes)]
    return all(known(size) for value in values if isinstance(value, Tensor) for size in value.shape)


def op_name(op: Node) -> str:
    """The name of an ATen op without its overload: "relu"; of a user's with its namespace."""
    if not isinstance(op.target, torch._ops.OpOverload):
        return str(getattr(op.target, "__name__", op.target))
    name = op.target._schema.name
    return name.removeprefix("aten::").removesuffix("_")


def _elsewhere(groups: Sequence[Sequence[Node]], context: Context) -> tuple[Elsewhere, ...]:
    """The ops that work, by name: each of the graph's nodes counts once, by its op that moves most."""
    named: dict[str, list[Sequence[Node]]] = {}
    for ops in groups:
        working = [op for op in ops if _is_sized(op) and work_of(op)]
        if working:
            named.setdefault(op_name(max(working, key=lambda op: _bytes([op]))), []).append(working)
    found = []
    for name, same in named.items():
        ops = [op for group in same for op in group]
        model, itemsize = _model(ops, context)
        seconds = rest_of_graph(ops, model, itemsize, context.training)
        found.append(Elsewhere(name, len(same), _bytes(ops), seconds))
    return tuple(found)


def _cost(ops: Sequence[Node], context: Context) -> Cost:
    model, itemsize = _model(ops, context)
    return cost_of(ops, model, itemsize, context.training)


def _model(ops: Sequence[Node], context: Context) -> tuple[Any, int]:
    """The time model of what some ops compute on, and the bytes of an element."""
    values = [op.meta["val"] for op in ops if isinstance(op.meta.get("val"), Tensor)]
    device, dtype = (values[0].device, values[0].dtype) if values else (torch.device("cpu"), torch.float32)
    return context.model(device, dtype, False), dtype.itemsize


def _bytes(ops: Iterable[Node]) -> int:
    """Bytes that ops read and write."""
    sized = [op for op in ops if _is_tensor(op) and _is_sized(op)]
    return sum(one.elements * op.meta["val"].dtype.itemsize for op in sized for one in work_of(op))


def _is_tensor(op: Node) -> bool:
    return isinstance(op.meta.get("val"), Tensor)


def _kind(nodes: Sequence[Node], reading: Reading) -> str:
    """The class of a layer, with the kernel and stride of a lone convolution: "Conv2d 7x7/2"."""
    kind = kind_of_layer(nodes)
    convs = [op for node in nodes for op in reading.ops.get(node, ()) if is_convolution(op)]
    return f"{kind} {_geometry(convs[0])}" if len(convs) == 1 and kind.startswith("Conv") else kind


def _geometry(conv: Node) -> str:
    """Kernel sizes, and the stride where there is one."""
    weight: Any = conv.args[1]
    kernel = [hint(size) for size in weight.meta["val"].shape[2:]]
    stride: Any = conv.args[3] if len(conv.args) > 3 else 1
    steps = [stride] * len(kernel) if isinstance(stride, int) else list(stride)
    steps = steps * len(kernel) if len(steps) == 1 else steps
    if prod(steps) == 1:
        return _by(kernel)
    return f"{_by(kernel)}/{steps[0] if len(set(steps)) == 1 else _by(steps)}"


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _printed(op: Node) -> str:
    """A working op as written: its name, and the channels of a convolution; "" for what only moves or adds."""
    if not any(one.macs for one in ops_of_nodes([op])):
        return ""
    if is_convolution(op):
        weight: Any = op.args[1]
        outs, ins, *kernel = (hint(size) for size in weight.meta["val"].shape)
        return f"{op_name(op)} {_by(kernel)} {ins}->{outs}"
    return op_name(op)
