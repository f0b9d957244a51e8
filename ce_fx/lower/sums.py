"""Emit a whole expression: each product by its plan, and their sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Graph, GraphModule, Node

from ce_fx.algebra import Axes, Expression, Term, flat
from ce_fx.lower.emit import emit
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.plan import Plan


def networks(expression: Expression, operands: Sequence[Operand]) -> tuple[Network, ...]:
    """The products of an expression.

    Args:
        expression: a sum of products.
        operands: what is known of each leaf.
    """
    return tuple(
        Network(
            term, _own_axes(term, expression.axes) if n else expression.axes, [operands[f.leaf] for f in term.factors]
        )
        for n, term in enumerate(expression.terms)
    )


def candidate(plans: Sequence[Plan], leaves: int) -> GraphModule:
    """A module that evaluates a sum of planned products of its inputs, in torch functions only.

    Args:
        plans: one for each product; the first has all output axes.
        leaves: the number of inputs; factor `f` of a product is input `f.leaf`.
    """
    graph = Graph()
    inputs = [graph.placeholder(f"leaf_{n}") for n in range(leaves)]
    total: Node | None = None
    for plan in plans:
        node = emit(plan, graph, [inputs[f.leaf] for f in plan.network.term.factors])
        total = node if total is None else graph.call_function(torch.add, (total, node))
    graph.output(total)
    graph.lint()
    return GraphModule(torch.nn.Module(), graph)


def _own_axes(term: Term, axes: Axes) -> Axes:
    """The output axes without those that a term does not depend on: they broadcast when it is added."""
    mine = term.indices
    return tuple(axis if any(index in mine for index in flat((axis,))) else () for axis in axes)
