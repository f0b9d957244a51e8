"""Factorised networks learn as well as dense ones, and the same with and without ce_fx.

On scikit-learn's digits where it is installed, and on drawn digits of the same size everywhere.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ce_fx
from ce_fx.nn import ConvEinsum, tensorize
from tests.nn.definition import dense_kernel, dense_layer

GLYPHS = """
.###. ..#.. .###. ####. ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# ....# ..##. #.... #.... ....# #...# #...#
#...# ..#.. ....# .###. .#.#. ####. ####. ...#. .###. .####
#...# ..#.. ..##. ....# ##### ....# #...# ..#.. #...# ....#
.###. .###. ##### ####. ...#. ####. .###. ..#.. .###. .###.
"""


def drawn_digits():
    """1200 images of 8x8: glyphs at one of four places, of random strength, with noise; and their labels."""
    generator = torch.Generator().manual_seed(0)
    rows = [line.split() for line in GLYPHS.split("\n") if line]
    glyphs = torch.tensor([[[float(c == "#") for c in row[n]] for row in rows] for n in range(10)])
    labels = torch.randint(10, (1200,), generator=generator)
    images = 0.1 * torch.randn(1200, 1, 8, 8, generator=generator)
    corners = torch.randint(1, 3, (1200, 2), generator=generator).tolist()
    strengths = 0.6 + torch.rand(1200, generator=generator)
    for image, label, (y, x), strength in zip(images, labels, corners, strengths, strict=True):
        image[0, y : y + 5, x : x + 5] += strength * glyphs[label]
    return images.double(), labels


def sklearn_digits():
    """1797 scanned digits of 8x8."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images).double()[order].unsqueeze(1) / 16
    return images, torch.from_numpy(data.target).long()[order]


def network(form=None, rate=0.4):
    """Three convolutions and a linear layer; of a form, if one is given, are those with more than one input channel.

    The head stays dense, as it mostly does: of ten classes CP makes a layer of few ranks, which costs it three points.
    """

    def conv(into, out, **options):
        if form is None or into == 1:
            return nn.Conv2d(into, out, 3, padding=1, **options)
        return ConvEinsum.of_form(form, into, out, (3, 3), rate=rate, padding=1, **options)

    layers = [conv(1, 16), nn.ReLU(), conv(16, 32), nn.ReLU(), conv(32, 32, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)).double()


def train(model, images, labels, epochs, run=None):
    """The losses of all steps."""
    run = run or model
    optimizer = torch.optim.Adam(model.parameters())
    steps = epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: len(order) // 64 * 64].split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(run(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item()


DATA = pytest.mark.parametrize("data", [sklearn_digits, drawn_digits])


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


@DATA
@pytest.mark.slow
@pytest.mark.parametrize("form", ["rtt", "cp"])
def test_loss_curves_are_the_same_with_ce_fx(data, form):
    images, labels = data()
    curves = []
    for run_of in (by_definition, lambda model: model, ce_fx.optimize):
        torch.manual_seed(0)
        model = network(form)
        losses = train(model, images[:512], labels[:512], 10, run_of(model))
        curves.append(torch.tensor(losses, dtype=torch.float64))
    plain, layers, optimized = curves
    assert plain[-1] < plain[0] / 2
    torch.testing.assert_close(layers, plain, rtol=0, atol=1e-8)
    torch.testing.assert_close(optimized, plain, rtol=0, atol=1e-8)


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
