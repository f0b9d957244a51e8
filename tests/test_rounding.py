"""Where torch rounds the operands of convolutions (TensorFloat-32), and not those of matmuls."""

from importlib import import_module

import pytest
import torch
from torch import nn

import ce_fx
from ce_fx.lower.precision import rounded
from ce_fx.plan.kinds import kind_of
from ce_fx.plan.tree import splits_of, step_of

deciding = import_module("ce_fx.decide")


class Pointwise(nn.Module):
    """Three mixes of channels at every pixel, as matmuls or as 1x1 convolutions."""

    def __init__(self, convolves):
        super().__init__()
        self.convolves = convolves
        sizes = (64, 8, 8, 64)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(b, a) / a**0.5) for a, b in zip(sizes, sizes[1:], strict=False)
        )

    def forward(self, x):
        w = self.weights[2] @ self.weights[1] @ self.weights[0]
        if self.convolves:
            return torch.conv2d(x, w[:, :, None, None])
        return torch.einsum("bshw,ts->bthw", x, w)


def as_convolutions(network, tree, *others):
    steps = [step_of(network, left, right) for left, right in splits_of(tree)]
    return {step.left | step.right: "mm_conv" for step in steps if kind_of(step, network) == "mm"}


def convolutions(fast):
    nodes = [node for gm in ce_fx.graph_modules(fast) for node in gm.graph.nodes]
    return [node for node in nodes if "conv" in str(node.target)]


@pytest.mark.parametrize("convolves", [False, True])
@pytest.mark.parametrize("rounds", [frozenset(), frozenset({"conv"}), frozenset({"conv", "matmul"})])
def test_matmuls_do_not_become_convolutions_that_round(monkeypatch, convolves, rounds):
    monkeypatch.setattr(deciding, "rounded", lambda device, dtype: rounds)
    for room in ("planner", "candidates"):  # as a time model would that knows convolutions to be fast
        monkeypatch.setattr(f"ce_fx.plan.{room}.best_ways", as_convolutions)
    model, x = Pointwise(convolves), torch.randn(2, 64, 56, 56)
    fast = ce_fx.optimize(model, tune=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    assert ce_fx.report(fast).count("rewritten") == 1
    assert bool(convolutions(fast)) == (convolves or rounds != {"conv"})


def test_a_rewrite_that_rounds_more_is_not_made(monkeypatch):
    monkeypatch.setattr(deciding, "rounded", lambda device, dtype: frozenset({"conv"}))
    monkeypatch.setattr(deciding, "less_accurate", lambda *args: "less accurate than as written")
    fast = ce_fx.optimize(Pointwise(True), tune=False)
    x = torch.randn(2, 64, 56, 56)
    with torch.no_grad():
        fast(x)
    (layer,) = ce_fx.report(fast).layers
    assert (layer.decision, layer.reason) == ("kept", "less accurate than as written")


def test_what_rounds_is_read_from_torchs_settings(monkeypatch):
    cpu = torch.device("cpu")
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert rounded(cpu, torch.float32) == {"matmul"}
        assert not rounded(cpu, torch.float64)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert not rounded(cpu, torch.float32)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not rounded(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert rounded(torch.device("cuda"), torch.float32) == {"conv"}
