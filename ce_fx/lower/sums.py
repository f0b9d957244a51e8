"""Emit a whole program: its steps in order, each product by its plan, and their sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ce_fx.algebra import Expression
from ce_fx.algebra.derived import Derived
from ce_fx.algebra.program import Eye, Place, Program, Step
from ce_fx.lower.derive import derive
from ce_fx.lower.emit import emit
from ce_fx.lower.multiply import CONVS
from ce_fx.plan.plan import Plan


def candidate(
    program: Program,
    plans: Sequence[Plan],
    leaves: Sequence[Tensor],
    derived: Sequence[Derived] = (),
    order: Sequence[int] | None = None,
) -> GraphModule:
    """A module that evaluates a program of its inputs, in torch functions only; what products share runs once.

    Args:
        program: the steps; leaves that are derived are counted among its leaves.
        plans: one for each product of each step, in order.
        leaves: values of the inputs, real or fake, for dtype and device.
        derived: leaves that are computed from the inputs.
        order: the axes of the result from the slowest to the fastest, as it is best stored.
    """
    graph = Graph()
    inputs = [graph.placeholder(f"leaf_{n}") for n in range(len(leaves))]
    into = _Into(graph, {"dtype": leaves[0].dtype, "device": leaves[0].device})
    values = [*inputs]
    for leaf in derived:
        values.append(derive(graph, leaf, values, into.like))
    queue = iter(plans)
    for n, step in enumerate(program.steps, 1):
        values.append(_emit_step(step, into, values, queue, order if n == len(program.steps) else None))
    graph.output(values[-1])
    graph.eliminate_dead_code()
    _once(graph)
    graph.lint()
    return GraphModule(torch.nn.Module(), graph)


def _once(graph: Graph) -> None:
    """Equal calls become one: all are pure. torch's `CSEPass` asks for arguments that can be hashed; slices cannot."""
    first: dict[tuple[object, ...], Node] = {}
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            same = first.setdefault((node.target, str(node.args), str(node.kwargs)), node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.erase_node(node)


class _Into(NamedTuple):
    """Where to emit, and the dtype and the device of constants."""

    graph: Graph
    like: dict[str, Any]


def _emit_step(
    step: Step, into: _Into, values: Sequence[Node], plans: Iterator[Plan], order: Sequence[int] | None
) -> Node:
    if isinstance(step, Eye):
        return into.graph.call_function(torch.eye, (step.size,), into.like)
    if isinstance(step, Place):
        return _place(step, into.graph, values[step.leaf])
    return _total(step, into, values, plans, order)


def _total(
    expression: Expression, into: _Into, values: Sequence[Node], plans: Iterator[Plan], order: Sequence[int] | None
) -> Node:
    graph = into.graph
    constant = sum(term.coefficient for term in expression.terms if not term.factors)
    parts: dict[tuple[bool, ...], Node] = {}  # by the axes that they have; those of a bias first become one
    matmuls = []
    for term in expression.terms:
        if not term.factors:
            continue
        plan = next(plans)
        node = emit(plan, graph, [values[f.leaf] for f in plan.network.term.factors], order)
        has = tuple(axis != () for axis in plan.network.output)
        if node.target is torch.mm and all(has):
            matmuls.append(node)
        else:
            parts[has] = graph.call_function(torch.add, (parts[has], node)) if has in parts else node
    if not parts and not matmuls:
        return graph.call_function(torch.full, (list(expression.shape), constant), into.like)
    total: Node | None = None
    for has, node in sorted(parts.items(), key=lambda item: -sum(item[0])):
        total = _with_bias(graph, total, node, has) if total else node
    for node in matmuls:  # each is added before it is rounded
        total = graph.call_function(torch.addmm, (total, *node.args)) if total else node
    assert total is not None
    return total if constant == 0 else graph.call_function(torch.add, (total, constant))


def _with_bias(graph: Graph, total: Node, node: Node, has: tuple[bool, ...]) -> Node:
    """A sum with what has fewer axes: a convolution adds one number per channel itself."""
    channels = [place for place, held in enumerate(has) if held]
    if total.target not in CONVS.values() or channels != [1] or len(total.args) > 2 or "bias" in total.kwargs:
        return graph.call_function(torch.add, (total, node))
    bias = graph.call_function(torch.flatten, (node,))
    assert callable(total.target)
    return graph.call_function(total.target, total.args, {**total.kwargs, "bias": bias})


def _place(step: Place, graph: Graph, leaf: Node) -> Node:
    """A kernel among zeros: gaps of `step - 1` zeros after every entry, then zeros on both sides."""
    node = graph.call_function(torch.reshape, (leaf, list(step.shape)))
    sizes = list(step.shape)
    for dim, (size, gap) in enumerate(zip(step.shape, step.steps, strict=True)):
        if gap > 1 and size > 1:
            wider = graph.call_function(torch.unsqueeze, (node, dim + 1))
            pads = [0, 0] * (len(sizes) - dim - 1) + [0, gap - 1]
            spread = graph.call_function(torch.nn.functional.pad, (wider, pads))
            sizes[dim] = size * gap
            merged = graph.call_function(torch.reshape, (spread, list(sizes)))
            sizes[dim] = (size - 1) * gap + 1
            node = graph.call_function(torch.narrow, (merged, dim, 0, sizes[dim]))
    pads = []
    for size, whole, offset in reversed(list(zip(sizes, step.sizes, step.offsets, strict=True))):
        pads += [offset, whole - size - offset]
    while pads and pads[-2:] == [0, 0]:
        pads = pads[:-2]
    return graph.call_function(torch.nn.functional.pad, (node, pads)) if pads else node
