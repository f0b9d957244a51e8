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

    def __init__(self, depth):
        super().__init__()
        make = ce_fx.nn.ConvEinsum.of_form
        self.layers = nn.ModuleList(make("rtt", 8, 8, (3, 3), rank=3, padding=1, bias=False) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_with_checkpoint_a_layer_more_keeps_its_input_only():
    """Two depths, since what a convolution needs meanwhile is the machine's."""
    torch.manual_seed(0)
    x, peaks = torch.randn(8, 8, 12, 12), {}
    for depth in (4, 6):
        model = Network(depth)
        for checkpoint in (False, True):
            fast = ce_fx.optimize(model, (x,), checkpoint=checkpoint, **OPTIONS)
            assert ce_fx.report(fast).count("rewritten") >= depth - 1
            peaks[checkpoint, depth] = peak_bytes(step_of(fast, model, x))
    more = {checkpoint: (peaks[checkpoint, 6] - peaks[checkpoint, 4]) // 2 for checkpoint in (False, True)}
    weights = 4 * sum(weight.numel() for weight in Network(1).parameters())
    assert x.nbytes <= more[True] <= x.nbytes + weights
    assert more[False] > 3 * x.nbytes


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
