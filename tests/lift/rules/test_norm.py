"""Eval batch norm as a scaling and a shift; training batch norm stays."""

import pytest
import torch
import torch.nn.functional as F

import ce_fx
from tests.lift.helpers import rand, refusal, regions_of


def block(x, w, mean, var, gain, bias):
    return F.batch_norm(F.conv2d(x, w, padding=1), mean, var, gain, bias, False, 0.1, 1e-5)


def given():
    return rand(2, 3, 6, 6), rand(4, 3, 3, 3), rand(4), rand(4).abs() + 0.1, rand(4), rand(4)


@pytest.mark.parametrize("objective", ["flops", "time"])
def test_it_is_one_region_with_the_convolution_and_exact(objective):
    inputs = given()
    found, gm = regions_of(block, *inputs)
    (region,) = found.regions
    assert [len(term.factors) for term in region.expression.terms] == [4, 3, 1]
    assert [leaf.kind for leaf in region.derived] == ["rsqrt"]
    with torch.no_grad():
        fast = ce_fx.rewrite(gm, inputs, objective=objective, tune=False, verify=False)
        torch.testing.assert_close(fast(*inputs), block(*inputs), rtol=1e-9, atol=1e-9)


def test_without_weight_and_bias():
    def plain(x, w, mean, var):
        return F.batch_norm(F.conv2d(x, w), mean, var, None, None, False, 0.1, 1e-3)

    found, _ = regions_of(plain, *given()[:4])
    assert [len(term.factors) for term in found.regions[0].expression.terms] == [3, 2]


def test_training_statistics_end_a_region():
    def train(x, w, gain, bias):
        return F.batch_norm(F.conv2d(x, w), None, None, gain, bias, True)

    x, w, _, _, gain, bias = given()
    assert refusal(train, x, w, gain, bias) == "batch norm in training takes its statistics from the batch"


def test_folded_it_is_one_convolution_with_a_bias():
    model = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8)).double().eval()
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    x = rand(2, 3, 6, 6)
    with torch.no_grad():
        fast = ce_fx.optimize(model, (x,), fold=True, objective="flops", tune=False)
        torch.testing.assert_close(fast(x), model(x))
