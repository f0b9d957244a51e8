"""The network of `ce-fx demo`: two convolutions in tensor-train form, and a linear layer with an adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter of low rank: `x W + x A B`.

    Args:
        inputs: features of the input.
        outputs: features of the output.
        rank: of the adapter.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.a = nn.Linear(inputs, rank, bias=False)
        self.b = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, inputs) to (batch, outputs)."""
        y: Tensor = super().forward(x) + self.b(self.a(x))
        return y


def tensor_train(channels: int, rank: int, inner: int) -> nn.Module:
    """A 3x3 convolution in tensor-train form: 1x1, 3x1, 1x3 and 1x1, with nothing between them.

    Args:
        channels: of input and output.
        rank: of the outer two cores.
        inner: rank between the two spatial cores.
    """
    return nn.Sequential(
        nn.Conv2d(channels, rank, 1, bias=False),
        nn.Conv2d(rank, inner, (3, 1), padding=(1, 0), bias=False),
        nn.Conv2d(inner, rank, (1, 3), padding=(0, 1), bias=False),
        nn.Conv2d(rank, channels, 1),
    )


class Demo(nn.Module):
    """Two blocks, a pool and a head; from (batch, 64, height, width) to (batch, 100)."""

    def __init__(self) -> None:
        super().__init__()
        self.tt1 = tensor_train(64, 26, 2)
        self.tt2 = tensor_train(64, 26, 2)
        self.head = AdaptedLinear(64, 100, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of 100 classes."""
        x = torch.relu(self.tt2(torch.relu(self.tt1(x))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y
