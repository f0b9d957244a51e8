"""Factorised networks learn as well as dense ones, and the same with and without ce_fx.

On scikit-learn's digits where it is installed, and on drawn digits of the same size everywhere.
"""

from functools import partial
from importlib.util import find_spec

import pytest
import torch

import ce_fx
from ce_fx.nn import ConvEinsum, tensorize
from tests.nn.definition import dense_kernel, dense_layer
from tests.nn.digits import accuracy, drawn_digits, network, sklearn_digits, train

needs_sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")
DATA = pytest.mark.parametrize("data", [pytest.param(sklearn_digits, marks=needs_sklearn), drawn_digits])


@DATA
@pytest.mark.slow
def test_factorised_networks_are_as_accurate_as_their_dense_twin(data):
    images, labels = data()
    held = len(labels) // 4
    results = {}
    for form in (None, "rtt", "cp"):
        torch.manual_seed(0)
        model = network(form)
        train(model, images[held:], labels[held:], epochs=20)
        results[form] = accuracy(model, images[:held], labels[:held])
    assert results[None] > 0.95
    assert results["rtt"] > results[None] - 0.02, results
    assert results["cp"] > results[None] - 0.02, results


def by_definition(model):
    """The network in plain torch: every kernel multiplied out, and torch's own convolution."""

    def run(x):
        for layer in model:
            if isinstance(layer, ConvEinsum):
                x = dense_layer(layer, x, dense_kernel(layer.string, list(layer.factors)), layer.bias)
            else:
                x = layer(x)
        return x

    return run


def rewritten(model, **options):
    """By FLOPs, which no clock and no machine changes."""
    return ce_fx.optimize(model, objective="flops", tune=False, **options)


@DATA
@pytest.mark.slow
@pytest.mark.parametrize("form", ["rtt", "cp"])
def test_loss_curves_are_the_same_with_ce_fx(data, form):
    images, labels = data()
    curves, runs = [], []
    for run_of in (by_definition, lambda model: model, rewritten, partial(rewritten, checkpoint=True)):
        torch.manual_seed(0)
        model = network(form, rate=0.15)  # of more weights, rebuilt kernels take fewest FLOPs
        losses = train(model, images[:512], labels[:512], 10, run := run_of(model))
        curves.append(torch.tensor(losses, dtype=torch.float64))
        runs.append(run)
    assert ce_fx.report(runs[2]).count("rewritten") == 2
    assert sum("recomputed in the backward" in row.reason for row in ce_fx.report(runs[3]).layers) == 2
    plain, *others = curves
    assert plain[-1] < plain[0] / 2
    for curve in others:
        torch.testing.assert_close(curve, plain, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_trained_network_survives_decomposition_and_training_mends_it():
    images, labels = drawn_digits()
    torch.manual_seed(0)
    model = network()
    train(model, images[300:], labels[300:], epochs=8)
    dense = accuracy(model, images[:300], labels[:300])
    tensorize(model, "rtt", rate=0.5, include=["2", "4"])
    assert all(0 < layer.error < 0.6 for layer in model.tensorize_report.replaced)
    assert accuracy(model, images[:300], labels[:300]) > 0.5  # far from guessing, at 0.1
    train(model, images[300:], labels[300:], epochs=2)
    assert accuracy(model, images[:300], labels[:300]) > dense - 0.02
