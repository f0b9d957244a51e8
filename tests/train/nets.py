"""A small network that gains, a training loop that remembers everything, and two of its runs compared."""

from dataclasses import dataclass

import torch
from torch import nn

import ce_fx

OPTIONS = {"tune": False, "objective": "flops"}
EXACT = {"rtol": 1e-9, "atol": 1e-9}


class Block(nn.Module):
    """A factorised convolution of large rank."""

    def __init__(self, rank=24):
        super().__init__()
        self.a = nn.Conv2d(8, rank, 1, bias=False)
        self.h = nn.Conv2d(rank, rank, (3, 1), padding=(1, 0), bias=False)
        self.w = nn.Conv2d(rank, rank, (1, 3), padding=(0, 1), bias=False)
        self.b = nn.Conv2d(rank, 8, 1)

    def forward(self, x):
        return self.b(self.w(self.h(self.a(x)))).relu()


class Net(nn.Module):
    """Two blocks around a batch norm; the second is left out if so told."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = Block(), nn.BatchNorm2d(8), Block()

    def forward(self, x, both=True):
        x = self.norm(self.first(x))
        return self.second(x) if both else x


def net(kind=Net):
    """The same weights in every call and in every process."""
    torch.manual_seed(0)
    return kind().double()


def batch(step=0, rank=0, size=4):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(size, 8, 9, 9, dtype=torch.float64, generator=generator)


def loss_of(model, x, **kwargs):
    return (model(x, **kwargs) - x).square().mean()


def rewritten(fast):
    return [row for row in ce_fx.report(fast).layers if row.decision == "rewritten"]


def whole(tensor):
    """A tensor with all its shards."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@dataclass
class Run:
    """What a training loop saw: losses, gradients of every step, and the weights and buffers at its end."""

    losses: list
    gradients: list
    state: list


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, foreach=True)


def train(model, optimiser=sgd, steps=3, step=None):
    """Train a model for some steps.

    Args:
        model: what is called and trained.
        optimiser: makes one of the parameters.
        steps: how many.
        step: from the model and the number of the step to a loss whose backward has run.
    """
    step = step or (lambda model, n: backward(loss_of(model, batch(n))))
    chosen = optimiser(model.parameters())
    losses, gradients = [], []
    for n in range(steps):
        losses.append(step(model, n).detach())
        gradients.append([None if p.grad is None else whole(p.grad).clone() for p in model.parameters()])
        chosen.step()
        chosen.zero_grad()
    return Run(losses, gradients, [whole(t.detach()).clone() for t in (*model.parameters(), *model.buffers())])


def backward(loss):
    loss.backward()
    return loss


def same(got, expected, **tolerance):
    """Two runs saw the same; a parameter without a gradient has none in both."""
    tolerance = tolerance or EXACT
    torch.testing.assert_close(got.losses, expected.losses, **tolerance)
    for ours, theirs in zip(got.gradients, expected.gradients, strict=True):
        assert [g is None for g in ours] == [g is None for g in theirs]
        torch.testing.assert_close(*([g for g in side if g is not None] for side in (ours, theirs)), **tolerance)
    torch.testing.assert_close(got.state, expected.state, **tolerance)
