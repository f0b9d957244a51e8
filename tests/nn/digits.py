"""Digits of 8x8 pixels, a small network for them, and its training."""

import torch
from torch import nn
from torch.nn import functional as F

from ce_fx.nn import ConvEinsum

GLYPHS = """
.###. ..#.. .###. ####. ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# ....# ..##. #.... #.... ....# #...# #...#
#...# ..#.. ....# .###. .#.#. ####. ####. ...#. .###. .####
#...# ..#.. ..##. ....# ##### ....# #...# ..#.. #...# ....#
.###. .###. ##### ####. ...#. ####. .###. ..#.. .###. .###.
"""


def drawn_digits():
    """1200 images of 8x8: glyphs at one of four places, of random strength, with noise; and their labels."""
    generator = torch.Generator().manual_seed(0)
    rows = [line.split() for line in GLYPHS.split("\n") if line]
    glyphs = torch.tensor([[[float(c == "#") for c in row[n]] for row in rows] for n in range(10)])
    labels = torch.randint(10, (1200,), generator=generator)
    images = 0.1 * torch.randn(1200, 1, 8, 8, generator=generator)
    corners = torch.randint(1, 3, (1200, 2), generator=generator).tolist()
    strengths = 0.6 + torch.rand(1200, generator=generator)
    for image, label, (y, x), strength in zip(images, labels, corners, strengths, strict=True):
        image[0, y : y + 5, x : x + 5] += strength * glyphs[label]
    return images.double(), labels


def sklearn_digits():
    """1797 scanned digits of 8x8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images).double()[order].unsqueeze(1) / 16
    return images, torch.from_numpy(data.target).long()[order]


def network(form=None, rate=0.4):
    """Three convolutions and a linear layer; of a form, if one is given, are those with more than one input channel.

    The head stays dense, as it mostly does: of ten classes CP makes a layer of few ranks, which costs it three points.
    """

    def conv(into, out, **options):
        if form is None or into == 1:
            return nn.Conv2d(into, out, 3, padding=1, **options)
        return ConvEinsum.of_form(form, into, out, (3, 3), rate=rate, padding=1, **options)

    layers = [conv(1, 16), nn.ReLU(), conv(16, 32), nn.ReLU(), conv(32, 32, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)).double()


def train(model, images, labels, epochs, run=None):
    """The losses of all steps."""
    run = run or model
    optimizer = torch.optim.Adam(model.parameters())
    steps = epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: len(order) // 64 * 64].split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(run(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item()
