"""See what was found: a graph with every multilinear region collapsed into one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ce_fx.algebra import Expression
from ce_fx.algebra.printer import to_string
from ce_fx.at_sight import holds_product
from ce_fx.capture.asserts import without_asserts
from ce_fx.capture.export import capture
from ce_fx.capture.reading import read
from ce_fx.lift.regions import find_regions
from ce_fx.lower.extract import copy_of, extract, replace_region, sizes_of


def lift(model_or_gm: torch.nn.Module, example_inputs: Sequence[Any]) -> GraphModule:
    """The graph with every multilinear region collapsed into one node that prints as its conv_einsum string.

    Args:
        model_or_gm: a module, captured by `torch.export`, or an FX graph of any origin. It is not changed.
        example_inputs: the positional inputs; for a graph, one value for each placeholder.

    Returns:
        A graph module that runs and gives the same values. Each region is a call of a sub-module that is named by the
        string and runs the region's nodes as written; parameters are the original ones.

    Raises:
        CaptureError: the model could not be exported.
    """
    if isinstance(model_or_gm, GraphModule):
        gm = copy_of(model_or_gm)
    else:
        gm = copy_of(capture(model_or_gm, tuple(example_inputs)))
    without_asserts(gm.graph)
    inputs = list(example_inputs)
    found = find_regions(gm.graph, read(gm, inputs))
    replaced: dict[Node, Node] = {}
    for region in found.regions:
        if not holds_product(region):
            continue
        name = _free_name(gm, _text(region.expression))
        inputs_of = (*region.leaves, *sizes_of(region.nodes, region.leaves))
        body = extract(gm, region.nodes, inputs_of, {})
        gm.add_module(name, body)
        leaves = tuple(replaced.get(leaf, leaf) for leaf in inputs_of)
        with gm.graph.inserting_before(region.output):
            node = gm.graph.call_module(name, leaves)
        node.meta = dict(region.output.meta)
        replace_region(region.output, node, region.nodes)
        replaced[region.output] = node
    gm.graph.lint()
    gm.recompile()
    return gm


def _text(expression: Expression) -> str:
    """The strings of the terms; the name of a sub-module has no dot, so coefficients are left out."""
    return " + ".join(to_string(term, expression.axes) for term in expression.terms)


def _free_name(gm: GraphModule, name: str) -> str:
    names, number = name, 2
    while names in gm._modules:
        names, number = f"{name} #{number}", number + 1
    return names
