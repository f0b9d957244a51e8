"""Lift small functions and judge the expressions by their definition."""

import math

import torch
import torch.nn.functional as F

import ce_fx
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
    for leaf in region.derived:  # some are derived from others
        leaves.append(DERIVED[leaf.kind]([leaves[n] for n in leaf.sources], *leaf.params))
    expected = function(*inputs)
    assert region.expression.shape == expected.shape
    torch.testing.assert_close(evaluate(region.expression, leaves), expected, rtol=1e-10, atol=1e-10)
    term = region.expression.terms[0]
    assert len(region.expression.terms) == terms
    assert factors is None or len(term.factors) == factors
    assert windows is None or len(term.windows) == windows
    return region


def _resize(_sources, mode, axes, size, out, align, factor):
    """Row i is what becomes of a one at position i of the last axis, seen at the first positions of the others."""
    ones = [1] * (axes - 1)
    sizes = {"size": [*ones, out]} if factor is None else {"scale_factor": [*(1.0 for _ in ones), factor]}
    units = torch.eye(size, dtype=torch.float64)
    rows = [F.interpolate(unit.view(1, 1, *ones, size), mode=mode, align_corners=align, **sizes) for unit in units]
    return torch.stack([row.flatten() for row in rows])


def _adaptive_avg_pool(_sources, size, out):
    matrix = torch.zeros(size, out, dtype=torch.float64)
    for o in range(out):
        start, end = o * size // out, -(-(o + 1) * size // out)
        matrix[start:end, o] = 1 / (end - start)
    return matrix


def _avg_pool(_sources, size, kernel, stride, pad, ceil, counted):
    steps = (size + 2 * pad - kernel) / stride
    out = (math.ceil(steps) if ceil else math.floor(steps)) + 1
    if ceil and (out - 1) * stride >= size + pad:
        out -= 1  # the last window starts in the input or in the padding on its left
    matrix = torch.zeros(size, out, dtype=torch.float64)
    for o in range(out):
        start, end = o * stride - pad, min(o * stride - pad + kernel, size + pad)
        inside = range(max(start, 0), min(end, size))
        matrix[inside.start : inside.stop, o] = 1 / (end - start if counted else len(inside))
    return matrix


def _part(sources, shape, dim, start, length, step):
    leaf = sources[0] if shape is None else sources[0].reshape(shape)
    return leaf.index_select(dim, start + step * torch.arange(length))


DERIVED = {
    "reciprocal": lambda sources: 1 / sources[0],
    "part": _part,
    "sqrt": lambda sources, eps: torch.sqrt(sources[0] + eps),
    "steps": lambda _sources, *runs: torch.tensor([v for v, n in runs for _ in range(n)], dtype=torch.float64),
    "rsqrt": lambda sources, eps: 1 / torch.sqrt(sources[0] + eps),
    "ones": lambda _sources, *shape: torch.ones(shape, dtype=torch.float64),
    "full": lambda _sources, size, value: torch.full((size,), value, dtype=torch.float64),
    "eye": lambda _sources, size: torch.eye(size, dtype=torch.float64),
    "resize": _resize,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "avg_pool": _avg_pool,
}
"""Derived leaves by their definitions."""


def assert_rewrites(function, *inputs, changed=True):
    """The function that fewest multiply-adds give has the same values and gradients; returns the new graph."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    gm = torch.fx.symbolic_trace(function)
    new = ce_fx.rewrite(gm, inputs, objective="flops", tune=False)
    assert changed is None or changed == (str(new.graph) != str(gm.graph))
    expected, got = function(*inputs), new(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, weights) for y in (got, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    return new


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
    return torch.randn(shape, dtype=torch.float64)
