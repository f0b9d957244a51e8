"""Sums: of products, with numbers, in place, over axes, and products of sums."""

import operator

import pytest
import torch
import torch.nn.functional as F

import ce_fx
from ce_fx import decide
from tests.lift.helpers import assert_lifts, rand, refusal, regions_of


@pytest.mark.parametrize(
    ("function", "terms"),
    [
        (lambda x, y: x + y, 2),
        (lambda x, y: x - 2 * y, 2),
        (lambda x, y: torch.sub(x, y, alpha=3), 2),
        (lambda x, y: torch.rsub(x, y, alpha=3), 2),
        (lambda x, y: 1 - (x + y), 3),
        (lambda x, y: (x + y) * (x - y), 2),
        (lambda x, y: sum([x, y, x * 0.5]), 2),
        (lambda x, y: torch.addcmul(x, x, y, value=2), 2),
        (lambda x, y: (x * y).add_(y), 2),
        (lambda x, y: operator.iadd(x * y, y), 2),
        (lambda x, y: (x * y).view(3, 2, 2).add_(1).mul_(2), 2),
        (lambda x, y: (x + y).sum(1, keepdim=True) + x, 3),
        (lambda x, y: (x * 1).expand(2, 3, 4).sum(0).mean() * y, 1),
        (lambda x, y: (x + 2).sum(dim=[0, 1]), 2),
    ],
)
def test_sums(function, terms):
    x, y = rand(3, 4), rand(3, 4)
    assert_lifts(function, x, y, terms=terms)


def test_a_sum_that_cancels_is_left_out():
    region = assert_lifts(lambda w, a, b: w + b @ a - w, rand(3, 4), rand(2, 4), rand(3, 2), terms=1)
    assert {str(region.leaves[f.leaf]) for f in region.expression.terms[0].factors} == {"a", "b"}


def test_a_product_of_sums_is_distributed():
    assert_lifts(lambda x, a, b: (x @ a + 1) @ (b + b.t()), rand(3, 4), rand(4, 5), rand(5, 5), terms=4)


def test_sums_broadcast():
    assert_lifts(lambda x, y: x + y, rand(3, 4), rand(1, 4), terms=2)
    assert_lifts(lambda x, y: x + y, rand(2, 1, 4), rand(3, 1), terms=2)


def test_addmm_scales_both_parts():
    z, x, y = rand(4), rand(3, 5), rand(5, 4)
    assert_lifts(lambda z, x, y: torch.addmm(z, x, y, beta=0.5, alpha=2), z, x, y, terms=2)
    assert_lifts(lambda z, x, y: torch.baddbmm(z, x, y, beta=0), rand(2, 3, 4), rand(2, 3, 5), rand(2, 5, 4), terms=1)


def test_a_convolution_of_a_sum():
    x, a, b, w = rand(2, 3, 6, 6), rand(4, 3, 1, 1), rand(4), rand(5, 4, 3, 3)
    assert_lifts(lambda x, a, b, w: F.conv2d(F.conv2d(x, a, b), w + w * 2), x, a, b, w, terms=2)


def test_a_bias_before_a_padded_convolution_is_refused():
    x, a, b, w = rand(2, 3, 6, 6), rand(4, 3, 1, 1), rand(4), rand(5, 4, 3, 3)
    reason = refusal(lambda x, a, b, w: F.conv2d(F.conv2d(x, a, b), w, padding=1), x, a, b, w)
    assert reason == "a constant before a padded convolution: the padding is zero and not that constant"


def test_a_value_that_is_read_twice_inside_is_one_region():
    def lora(x, w, a, b):
        y = x @ w
        return y @ a @ b + y

    assert_lifts(lora, rand(3, 4), rand(4, 5), rand(5, 2), rand(2, 5), terms=2)


def test_a_value_that_is_read_outside_too_is_a_leaf():
    def function(x, w, a):
        y = x @ w
        return (y @ a + y).relu() + y.relu()

    found, _ = regions_of(function, rand(3, 4), rand(4, 5), rand(5, 5))
    assert [len(region.expression.terms) for region in found.regions] == [1, 2, 2]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x.add_(y),
        lambda x, y: x.view(12).add_(1),
        lambda x, y: x.t().mul_(2),
    ],
)
def test_a_write_to_what_others_see_is_refused(function):
    assert "read elsewhere" in refusal(function, rand(3, 4), rand(3, 4))


def test_a_write_to_a_value_with_another_view_is_refused():
    def function(x, y):
        z = x * y
        v = z.view(12)
        z.add_(1)
        return v @ v

    found, _ = regions_of(function, rand(3, 4), rand(3, 4))
    assert any("read elsewhere" in r.reason for r in found.refusals.values())


def assert_exact(function, *inputs):
    gm = torch.fx.symbolic_trace(function)
    for objective in ("flops", "time"):
        fast = ce_fx.rewrite(gm, inputs, objective=objective, tune=False, verify=False)
        torch.testing.assert_close(fast(*inputs), function(*inputs), rtol=1e-9, atol=1e-9)


def test_a_group_does_not_form_around_the_identity_of_another():
    def function(x, s, r, w, k):
        y = (x * s) @ r
        return F.conv1d(y, w) + F.conv1d(y.reshape(6, 1, 6), k, padding=1).reshape(2, 3, 6)

    assert_exact(function, rand(2, 3, 3), rand(3, 1), rand(3, 6), rand(3, 3, 1), rand(1, 1, 3))


def test_nothing_but_padding_is_left():
    def function(x, a, b):
        return F.conv1d(F.pad(F.conv1d(x, a, stride=2), (2, -2)), b)

    assert_exact(function, rand(2, 3, 4), rand(3, 3, 2), rand(2, 3, 2))


def test_pooling_before_mixing_is_found():
    def function(x, a):
        return F.adaptive_avg_pool2d(F.conv2d(x, a), 1)

    gm = torch.fx.symbolic_trace(function)
    inputs = rand(2, 16, 14, 14), rand(32, 16, 1, 1)
    fast = ce_fx.rewrite(gm, inputs, objective="flops", tune=False)
    assert str(fast.graph) != str(gm.graph)
    assert_exact(function, *inputs)


def test_one_region_that_fails_does_not_take_the_others_along(monkeypatch):
    whole = decide._decide
    monkeypatch.setattr(decide, "_decide", lambda region, context: _failing(whole, region, context))
    gm = torch.fx.symbolic_trace(lambda x, a, b, c: torch.relu(x @ a @ b) @ c @ b)
    inputs = rand(64, 32), rand(32, 2), rand(2, 32), rand(32, 2)
    fast = ce_fx.rewrite(gm, inputs, objective="flops", tune=False)
    torch.testing.assert_close(fast(*inputs), gm(*inputs))


def _failing(whole, region, context):
    if len(context.decided) == 0:
        raise RuntimeError("planted")
    return whole(region, context)


@pytest.mark.parametrize(
    "reduce",
    [
        lambda y: y.mean((2, 3)),
        lambda y: y.sum((2, 3)),
        lambda y: y.mean(-1, keepdim=True),
        lambda y: y.sum(2),
        lambda y: y.mean((0, 2, 3)),
        lambda y: y.sum((1, 2, 3)),
    ],
)
def test_positions_of_a_convolution_are_summed(reduce):
    """A mean over all positions is a pool of all: channels are mixed behind it."""

    def function(x, w, b, v):
        return reduce(F.conv2d(F.conv2d(x, w, b, stride=2, padding=1), v))

    inputs = rand(2, 3, 9, 8), rand(6, 3, 3, 3), rand(6), rand(4, 6, 1, 1)
    found, _ = regions_of(function, *inputs)
    assert len(found.regions) == 1 and not found.refusals
    assert_exact(function, *inputs)
    leaves = [x.requires_grad_() for x in inputs]
    fast = ce_fx.rewrite(torch.fx.symbolic_trace(function), leaves, objective="flops", tune=False)
    gradients = [torch.autograd.grad(run(*leaves).square().sum(), leaves) for run in (function, fast)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_complex_products_are_planned_and_count_four_real_ones():
    def chain(x, a, b):
        return x @ a @ b

    x, a, b = (torch.randn(shape, dtype=torch.complex128, requires_grad=True) for shape in ((40, 8), (8, 9), (9, 2)))
    fast = ce_fx.rewrite(torch.fx.symbolic_trace(chain), (x, a, b), objective="flops", tune=False)
    assert fast.code != torch.fx.symbolic_trace(chain).code
    gradients = [torch.autograd.grad(run(x, a, b).abs().square().sum(), (x, a, b)) for run in (chain, fast)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    (row,) = ce_fx.audit(torch.fx.symbolic_trace(chain), (x.detach(), a.detach(), b.detach())).layers
    assert row.flops_before == 8 * (40 * 8 * 9 + 40 * 9 * 2)
