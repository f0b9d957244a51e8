"""The dense networks of the workloads: residual networks, and two streams of video."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions with batch norm, and a shortcut (He et al., arXiv 1512.03385).

    Args:
        ins: channels of the input.
        width: channels of the 3x3 convolutions.
        stride: of the block.
        bottleneck: 1x1, 3x3, 1x1 with four times the width at the end, instead of two 3x3.
    """

    def __init__(self, ins: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outs = 4 * width if bottleneck else width
        if bottleneck:
            plan = [(ins, width, 1, 1), (width, width, 3, stride), (width, outs, 1, 1)]
        else:
            plan = [(ins, width, 3, stride), (width, width, 3, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in plan)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in plan)
        self.down: nn.Module = nn.Identity()
        if stride != 1 or ins != outs:
            self.down = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        """Block of (batch, channels, height, width)."""
        y = x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            y = F.relu(norm(conv(y)))
        return F.relu(self.norms[-1](self.convs[-1](y)) + self.down(x))


class ResNet(nn.Module):
    """A residual network.

    Args:
        depths: blocks of each stage.
        bottleneck: of its blocks.
        classes: of its scores.
        channels: of its input.
        width: of the first stage.
        small: images of 32 px: a 3x3 stem without pooling, as is usual for them.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        bottleneck: bool = False,
        classes: int = 10,
        channels: int = 3,
        width: int = 64,
        small: bool = True,
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False) if small else None
        self.stem = stem or nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stages = nn.Sequential()
        ins = width
        for stage, depth in enumerate(depths):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                self.stages.append(Residual(ins, width * 2**stage, stride, bottleneck))
                ins = width * 2**stage * (4 if bottleneck else 1)
        self.head = nn.Linear(ins, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.pool(F.relu(self.norm(self.stem(x))))
        return self.head(self.stages(x).mean((2, 3)))


class TwoStream(nn.Module):
    """A spatial network on an image and a temporal one on optical flow, whose scores are averaged (arXiv 1406.2199).

    Args:
        depths: of both residual networks: those of ResNet-101.
        width: of both.
        flow: frames of optical flow, of two channels each.
        classes: those of UCF-101.
    """

    def __init__(
        self, depths: Sequence[int] = (3, 4, 23, 3), width: int = 64, flow: int = 10, classes: int = 101
    ) -> None:
        super().__init__()
        self.spatial, self.temporal = (
            ResNet(depths, True, classes, channels, width, small=False) for channels in (3, 2 * flow)
        )

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        """Class scores."""
        return (torch.softmax(self.spatial(image), 1) + torch.softmax(self.temporal(flow), 1)) / 2
