"""Six sums and how each is best evaluated, forward, in training and with folded weights: predictions of one thread.

The expected choices were measured (PLANNER 3.3): bypass or merged kernel, one kernel for parallel branches, channel
work below a resize, a common prefix taken out, kernels of blocks added up.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ce_fx


def weight(*shape, frozen=False):
    return nn.Parameter(torch.randn(shape) / shape[1] ** 0.5, requires_grad=not frozen)


class LoRA(nn.Module):
    def __init__(self, channels, rank):
        super().__init__()
        self.w = weight(channels, channels, 3, 3, frozen=True)
        self.a, self.b = weight(rank, channels, 3, 3), weight(channels, rank, 1, 1)

    def forward(self, x):
        return F.conv2d(x, self.w, padding=1) + 2.0 * F.conv2d(F.conv2d(x, self.a, padding=1), self.b)


class RepVGG(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.w, self.v = weight(channels, channels, 3, 3), weight(channels, channels, 1, 1)

    def forward(self, x):
        return F.conv2d(x, self.w, padding=1) + F.conv2d(x, self.v) + x


class Branches(nn.Module):
    """1x1 and 3x3, 1x1, 1x1 and average pool: a diverse branch block without its batch norms."""

    def __init__(self, channels):
        super().__init__()
        self.a, self.d, self.e = (weight(channels, channels, 1, 1) for _ in range(3))
        self.k = weight(channels, channels, 3, 3)

    def forward(self, x):
        first = F.conv2d(F.conv2d(x, self.a), self.k, padding=1)
        return first + F.conv2d(x, self.d) + F.avg_pool2d(F.conv2d(x, self.e), 3, 1, 1)


class Head(nn.Module):
    def __init__(self, width=256, channels=(32, 64, 160, 256)):
        super().__init__()
        self.p = nn.ParameterList([weight(width, c, 1, 1) for c in channels])
        self.w = weight(width, 4 * width, 1, 1)

    def forward(self, *features):
        first, *others = (F.conv2d(x, p) for x, p in zip(features, self.p, strict=True))
        up = [F.interpolate(y, size=first.shape[2:], mode="bilinear", align_corners=False) for y in others]
        return F.conv2d(torch.cat([first, *up], 1), self.w)


class Prefix(nn.Module):
    def __init__(self, channels, rank):
        super().__init__()
        self.a, self.b, self.c = (
            weight(rank, channels, 1, 1),
            weight(channels, rank, 1, 1),
            weight(channels, rank, 1, 1),
        )

    def forward(self, x):
        return F.conv2d(F.conv2d(x, self.a), self.b) + F.conv2d(F.conv2d(x, self.a), self.c)


class Blocks(nn.Module):
    def __init__(self, blocks, channels, rank):
        super().__init__()
        self.side = round(channels**0.5)
        self.h = nn.ParameterList([weight(self.side, self.side, rank) for _ in range(blocks)])
        self.g = nn.ParameterList([weight(self.side, self.side, rank, 3, 3) for _ in range(blocks)])

    def forward(self, x):
        kernels = (torch.einsum("opr,uvrkl->oupvkl", h, g) for h, g in zip(self.h, self.g, strict=True))
        return sum(F.conv2d(x, kernel.reshape(self.side**2, self.side**2, 3, 3), padding=1) for kernel in kernels)


KEPT, ONE, REWRITTEN = "kept", "one convolution", "rewritten"
PYRAMID = [(1, 32, 128, 128), (1, 64, 64, 64), (1, 160, 32, 32), (1, 256, 16, 16)]
EXAMPLES = {  # model, inputs, what is chosen forward, in training, folded
    "LoRA 320@32, base frozen": (lambda: LoRA(320, 16), [(2, 320, 32, 32)], KEPT, KEPT, ONE),
    "LoRA 64@56, base frozen": (lambda: LoRA(64, 8), [(8, 64, 56, 56)], ONE, KEPT, ONE),
    "3x3, 1x1 and identity": (lambda: RepVGG(64), [(8, 64, 56, 56)], ONE, ONE, ONE),
    "branches 64@56": (lambda: Branches(64), [(8, 64, 56, 56)], ONE, ONE, ONE),
    "branches 512@7, one image": (lambda: Branches(512), [(1, 512, 7, 7)], KEPT, KEPT, ONE),
    "resized features": (Head, PYRAMID, REWRITTEN, REWRITTEN, REWRITTEN),
    "common prefix": (lambda: Prefix(256, 16), [(4, 256, 28, 28)], REWRITTEN, REWRITTEN, REWRITTEN),
    "sum of blocks": (lambda: Blocks(4, 64, 2), [(8, 64, 56, 56)], ONE, ONE, ONE),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_expected_form_is_chosen(name):
    make, shapes, *expected = EXAMPLES[name]
    torch.manual_seed(0)
    model = make().eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    for mode, choice in zip(("forward", "train", "fold"), expected, strict=True):
        with torch.set_grad_enabled(mode == "train"):
            report = ce_fx.audit(
                model, inputs, train=mode == "train", tune=False, fold=mode == "fold", verify=name.startswith("common")
            )
        (layer,) = report.layers
        assert layer.decision == (KEPT if choice == KEPT else REWRITTEN), (mode, layer.reason)
        if choice == ONE:
            assert sum("|" in step for step in layer.plan) == 1, (mode, layer.plan)
        if name == "resized features":
            assert layer.flops_after < layer.flops_before / 4, mode
        if name == "common prefix":
            assert layer.flops_after * 2 == layer.flops_before, mode
