"""Exact bytes of a training step: what `checkpoint=True` saves, and a count by hand."""

import pytest
import torch
from torch import nn

import ce_fx
from benchmarks.paper.peak import peak_bytes

OPTIONS = {"tune": False, "objective": "flops", "verbose": False}


def step_of(run, model, x):
    weights = list(model.parameters())

    def step():
        y = run(x)
        return torch.autograd.grad(y, weights, torch.ones_like(y))

    step()
    return step


class Network(nn.Module):
    """Some RTT convolutions in a row."""

    def __init__(self):
        super().__init__()
        make = ce_fx.nn.ConvEinsum.of_form
        self.layers = nn.ModuleList(make("rtt", 8, 8, (3, 3), rank=3, padding=1, bias=False) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_checkpoint_lowers_the_peak_of_a_training_step():
    torch.manual_seed(0)
    model, x = Network(), torch.randn(8, 8, 12, 12)
    by_flops, checkpointed = (ce_fx.optimize(model, (x,), checkpoint=each, **OPTIONS) for each in (False, True))
    assert ce_fx.report(by_flops).count("rewritten")
    peaks = [peak_bytes(step_of(run, model, x)) for run in (by_flops, checkpointed)]
    assert peaks[1] < 0.8 * peaks[0]


class Bottleneck(nn.Module):
    """x.A.B with nothing to merge: 32 -> 4 -> 4 -> 32 features, all but x and the result small."""

    def __init__(self):
        super().__init__()
        self.layer = ce_fx.nn.ConvEinsum("bs,rs,rt->bt", (4, 32), (4, 32), bias=False)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("rows", [64, 128])
def test_one_layer_by_hand(rows):
    torch.manual_seed(0)
    model, x = Bottleneck(), torch.randn(rows, 32)
    fast = ce_fx.optimize(model, (x,), **OPTIONS)
    assert ce_fx.report(fast).count("rewritten") == 1
    wide, narrow, weight = 4 * rows * 32, 4 * rows * 4, 4 * 4 * 32
    # The result, its gradient and x.A^T are there when the backward starts. That of the second product adds the
    # gradients of x.A^T and B, and then x.A^T is released, which is larger than the gradient of A that comes last.
    assert weight < narrow
    assert peak_bytes(step_of(fast, model, x)) == 2 * wide + 2 * narrow + weight
