"""Models that tests, benchmarks and the demo share: a plain ResNet-18, and the same with factorised convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., arXiv 1512.03385, basic block)."""

    def __init__(self, ins: int, outs: int, stride: int, conv) -> None:
        super().__init__()
        self.conv1 = conv(ins, outs, stride)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = conv(outs, outs, 1)
        self.bn2 = nn.BatchNorm2d(outs)
        self.relu = nn.ReLU()
        self.down = None
        if stride != 1 or ins != outs:
            self.down = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.down is None else self.down(x)))


class ResNet18(nn.Module):
    """ResNet-18 with a given maker of its 3x3 convolutions."""

    def __init__(self, conv, num_classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for number, (scale, stride) in enumerate(((1, 1), (2, 2), (4, 2), (8, 2)), 1):
            outs = scale * width
            layer = nn.Sequential(Block(channels, outs, stride, conv), Block(outs, outs, 1, conv))
            setattr(self, f"layer{number}", layer)
            channels = outs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def plain_resnet18(num_classes: int = 1000, width: int = 64) -> ResNet18:
    """ResNet-18 as it is."""
    return ResNet18(lambda i, o, s: nn.Conv2d(i, o, 3, s, 1, bias=False), num_classes, width)


def factorized_conv(
    ins: int,
    outs: int,
    stride: int = 1,
    factorization: str = "tt",
    rank: float = 0.25,
    implementation: str = "factorized",
    bias: bool = False,
) -> nn.Module:
    """tensorly-torch's 3x3 FactorizedConv, scaled so that its output has about the variance of its input."""
    import tltorch

    layer = tltorch.FactorizedConv(
        ins,
        outs,
        kernel_size=3,
        order=2,
        stride=stride,
        padding=1,
        bias=bias,
        factorization=factorization,
        rank=rank,
        implementation=implementation,
    )
    with torch.no_grad():
        target = (1 / (9 * ins)) ** 0.5
        layer.weight.normal_(0, target)
        # tensorly-torch's own scale is far too small for TT (outputs of 0.001 of the inputs, which a comparison of
        # whole networks would not see): every factor gets its share of what the kernel lacks.
        factors = list(layer.weight.parameters())
        share = float(target / layer.weight.to_tensor().std()) ** (1 / len(factors))
        for factor in factors:
            factor.mul_(share)
        if layer.bias is not None:
            layer.bias.normal_()  # tensorly-torch leaves it uninitialised
    return layer


def factorized_resnet18(
    factorization: str = "tt",
    rank: float = 0.25,
    implementation: str = "factorized",
    num_classes: int = 1000,
    width: int = 64,
) -> ResNet18:
    """ResNet-18 with every 3x3 convolution a tensorly-torch `FactorizedConv`."""

    def conv(ins: int, outs: int, stride: int) -> nn.Module:
        return factorized_conv(ins, outs, stride, factorization, rank, implementation)

    return ResNet18(conv, num_classes, width)
