"""Lift small functions and judge the expressions by their definition."""

import torch

from ce_fx.capture.reading import read
from ce_fx.lift.regions import find_regions
from tests.evaluate import evaluate


def regions_of(function, *inputs):
    """The regions of a function of tensors, and the traced graph."""
    gm = torch.fx.symbolic_trace(function)
    with torch.no_grad():
        return find_regions(gm.graph, read(gm, inputs)), gm


def assert_lifts(function, *inputs, factors=None, windows=None, terms=1):
    """The function is one region whose expression, by definition, has the function's values; returns it."""
    found, gm = regions_of(function, *inputs)
    assert not found.refusals, found.refusals
    assert len(found.regions) == 1, [str(r.expression) for r in found.regions]
    region = found.regions[0]
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    leaves = [inputs[placeholders.index(_source(leaf))] for leaf in region.leaves]
    expected = function(*inputs)
    assert region.expression.shape == expected.shape
    torch.testing.assert_close(evaluate(region.expression, leaves), expected, rtol=1e-10, atol=1e-10)
    term = region.expression.terms[0]
    assert len(region.expression.terms) == terms
    assert factors is None or len(term.factors) == factors
    assert windows is None or len(term.windows) == windows
    return region


def _source(leaf):
    """The placeholder that a leaf is, or hands on by ops that give the same tensor."""
    return leaf if leaf.op == "placeholder" else _source(leaf.args[0])


def refusal(function, *inputs):
    """The reason of the only refusal in a function, and the number of regions with a product."""
    found, _ = regions_of(function, *inputs)
    reasons = [r.reason for r in found.refusals.values()] + [r.border for r in found.regions if r.border]
    assert len(reasons) == 1, reasons
    return reasons[0]


def rand(*shape):
    """Normal values in float64."""
    return torch.randn(*shape, dtype=torch.float64)
