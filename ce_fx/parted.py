"""What a graph break costs: both graphs as one, and what the regions that reach across the break would gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ce_fx.capture.blank import blank
from ce_fx.capture.reading import read
from ce_fx.compiled import Compiled
from ce_fx.decide import Context, decide
from ce_fx.lift.regions import find_regions
from ce_fx.options import Options
from ce_fx.provenance import provenance
from ce_fx.report.names import layer_name
from ce_fx.report.units import si
from ce_fx.rewrite import model_of, weight_only
from ce_fx.sizes import hint

_SIDES = ("before", "after")


@dataclass(frozen=True)
class Parted:
    """A region that a graph break parts.

    Attributes:
        name: the layers before and behind the break.
        flops: what its parts take, and what it would take as one; backward included where gradients are recorded.
        seconds: the same, predicted.
    """

    name: str
    flops: tuple[int, int]
    seconds: tuple[float, float]


def parted(before: Compiled, after: Compiled, options: Options) -> list[Parted]:
    """The regions that would reach across a graph break and be evaluated in a better order.

    Dynamo does not say which results of one graph the next is given: they are told by their sizes, strides and dtypes.

    Args:
        before: the graph that ended at the break.
        after: the one that went on behind it.
        options: those of `optimize`. Nothing is timed here, all is predicted.
    """
    with torch.set_grad_enabled(before.grad):
        joined, inputs = _joined(before, after)
        reading = read(joined, inputs)
        constant = weight_only(joined, inputs, reading)
        context = Context(
            gm=joined,
            options=replace(options, tune=False, verify=False),
            fakes=dict(reading.fakes),
            constant=constant,
            model=partial(model_of, options),
            training=before.grad,
            ops=reading.ops,
        )
        found = []
        for region in find_regions(joined.graph, reading, constant).regions:
            sides = [[node for node in region.nodes if node.meta["side"] == side] for side in _SIDES]
            decision = decide(region, context) if all(sides) else None
            if decision is not None and decision.candidate is not None:
                was, now = decision.before, decision.after
                name = " | ".join(layer_name(nodes) for nodes in sides)
                found.append(Parted(name, (was.flops, now.flops), (was.seconds, now.seconds)))
    return found


def cost_of(found: Sequence[Parted]) -> str:
    """What a break costs, as half a sentence."""
    if not found:
        return "without it no region would reach further and gain by that"
    names = ", ".join(one.name for one in found)
    flops, now = (sum(one.flops[n] for one in found) for n in (0, 1))
    seconds, then = (sum(one.seconds[n] for one in found) for n in (0, 1))
    return (
        f"it parts {names}: as one {si(now)} FLOPs in place of {si(flops)}, "
        f"predicted {then * 1e3:.3g} ms in place of {seconds * 1e3:.3g}"
    )


def _joined(before: Compiled, after: Compiled) -> tuple[GraphModule, list[Any]]:
    """Two graphs as one, and blank inputs for it. Symbolic sizes are numbers, by their hints."""
    root, graph = torch.nn.Module(), Graph()
    inputs: list[Any] = []
    weights: dict[int, Node] = {}
    results: list[tuple[object, Node]] = []
    for side, one in zip(_SIDES, (before, after), strict=True):
        root.add_module(side, one.gm)
        copies: dict[Node, Node] = {}
        given = dict(zip(one.gm.graph.find_nodes(op="placeholder"), one.parameters, strict=False))
        for node in one.gm.graph.nodes:
            if node.op == "output":
                continue
            value, weight = node.meta.get("example_value"), given.get(node)
            known = weights.get(weight) if weight else _taken(results, value) if node in given else None
            if known is not None:
                copies[node] = known
                continue
            copies[node] = copy = graph.node_copy(node, copies.__getitem__)
            copy.meta = {**provenance(node), "side": side, "tensor_dict": node.meta.get("tensor_dict", {})}
            if node.op in ("get_attr", "call_module"):
                copy.target = f"{side}.{node.target}"
            if node.op == "placeholder":
                copy.target = copy.name  # those of both graphs may have one name
                inputs.append(blank(value))
            if weight:
                weights[weight] = copy
        outputs = one.gm.graph.output_node().all_input_nodes
        results = [(_layout(node.meta.get("example_value")), copies[node]) for node in outputs]
    graph.output(tuple(node for _, node in results))
    return GraphModule(root, graph), inputs


def _taken(results: list[tuple[object, Node]], value: Any) -> Node | None:
    """Take the first result of the same layout as a value, if there is one."""
    place = next((n for n, (layout, _) in enumerate(results) if layout == _layout(value)), None)
    return None if place is None else results.pop(place)[1]


def _layout(value: Any) -> object:
    """What tells tensors apart; nothing is like a value that is no tensor."""
    if not isinstance(value, Tensor):
        return object()
    return tuple(map(hint, value.shape)), tuple(map(hint, value.stride())), value.dtype, value.device
