"""Layers with an `autograd.Function` of their own, as LyCORIS writes LoHa: what is around them is rewritten."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import ce_fx


class Hada(torch.autograd.Function):
    """`(a1 b1) * (a2 b2) * scale`, whose factors alone are kept for the backward."""

    @staticmethod
    def forward(ctx, a1, b1, a2, b2, scale):
        ctx.save_for_backward(a1, b1, a2, b2, scale)
        return (a1 @ b1) * (a2 @ b2) * scale

    @staticmethod
    def backward(ctx, grad):
        a1, b1, a2, b2, scale = ctx.saved_tensors
        grad = grad * scale
        first, second = grad * (a2 @ b2), grad * (a1 @ b1)
        return first @ b1.T, a1.T @ first, second @ b2.T, a2.T @ second, None


class LoHa(nn.Module):
    """A frozen convolution, one with the rebuilt kernel added to it, and a chain of two behind."""

    def __init__(self, channels=16, rank=3):
        super().__init__()
        self.base = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
        shapes = (channels, rank), (rank, 9 * channels), (channels, rank), (rank, 9 * channels)
        self.factors = nn.ParameterList(torch.randn(shape) for shape in shapes)
        self.register_buffer("scale", torch.tensor(0.3))
        self.wide, self.narrow = nn.Conv2d(channels, 8 * channels, 1), nn.Conv2d(8 * channels, 4, 1)

    def forward(self, x):
        kernel = Hada.apply(*self.factors, self.scale).view_as(self.base.weight)
        y = self.base(x) + functional.conv2d(x, kernel, padding=1)
        return self.narrow(self.wide(torch.relu(y)))


@pytest.mark.parametrize("via", ["optimize", "backend"])
@pytest.mark.parametrize("mode", ["train", "eval", "fold"])
def test_what_is_around_a_function_is_rewritten(mode, via):
    model = LoHa().double().train(mode == "train")
    x = torch.randn(2, 16, 9, 9, dtype=torch.float64)
    options = {"objective": "flops", "tune": False, "fold": mode == "fold"}
    twin = copy.deepcopy(model)
    if via == "optimize":
        fast = ce_fx.optimize(twin, **options)
    else:
        fast = torch.compile(twin, backend="ce_fx", options={**options, "inner": "eager"})
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.set_grad_enabled(mode == "train"):
        for _ in range(2):
            torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
        if mode == "train":
            given = [p for p in twin.parameters() if p.requires_grad]
            mine = torch.autograd.grad(fast(x).square().sum(), given)
            torch.testing.assert_close(mine, torch.autograd.grad(model(x).square().sum(), trained))
    with torch.no_grad():
        for one, other in zip(model.factors, twin.factors, strict=True):
            one.mul_(0.5), other.mul_(0.5)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    if via == "optimize":
        decisions = [row.decision for row in ce_fx.report(fast).layers]
        assert "rewritten" in decisions, "the chain behind the Function"
