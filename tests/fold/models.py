"""Models with kernels made of weights, and what the tests of `fold=True` share."""

import torch
import torch.nn.functional as F
from torch import nn

import ce_fx
from tests.models import factorized_conv


class Standardised(nn.Module):
    """A convolution by a weight of mean 0 and variance 1: no planner can do without the kernel."""

    def __init__(self, channels=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.register_buffer("scale", torch.rand(channels))

    def forward(self, x):
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        kernel = centred / centred.std((1, 2, 3), keepdim=True) * self.scale[:, None, None, None]
        return torch.relu(F.conv2d(x, kernel, padding=1))


class Rebuilt(nn.Module):
    """A convolution whose kernel is put together in every call."""

    def __init__(self, channels=4, rank=3):
        super().__init__()
        self.t = nn.Parameter(torch.randn(channels, rank))
        self.s = nn.Parameter(torch.randn(rank, channels))
        self.k = nn.Parameter(torch.randn(rank, 3, 3))

    def forward(self, x):
        return F.conv2d(x, torch.einsum("tr,rs,rhw->tshw", self.t, self.s, self.k).tanh(), padding=1)


class Lora(nn.Module):
    """A linear layer with a low-rank change of its weight, added up in every call, over the channels."""

    def __init__(self, channels=4, rank=2):
        super().__init__()
        self.base = nn.Linear(channels, channels)
        self.down = nn.Parameter(torch.randn(rank, channels))
        self.up = nn.Parameter(torch.randn(channels, rank))

    def forward(self, x):
        weight = self.base.weight + 0.5 * (self.up @ self.down)
        return F.linear(x.movedim(1, -1), F.normalize(weight, dim=1), self.base.bias).movedim(-1, 1)


def tensorly():
    return factorized_conv(4, 4, implementation="reconstructed", bias=True)


MODELS = [Standardised, Rebuilt, Lora, tensorly]


def optimize(model, *args, **options):
    return ce_fx.optimize(model, *args, fold=True, **options)


def same(fast, model, *args):
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args))


def kept(fast):
    return [each.running.fold.kept for each in fast._ce_fx_session.compiled if each.running.fold is not None]
