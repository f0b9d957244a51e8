"""A folder with a small model in a file, as a new user has it."""

import sys

import pytest
import torch

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.mix = nn.Conv2d(width, 2, 1, bias=False)
        self.out = nn.Conv2d(2, width, 1)

    def forward(self, x, scale: float = 1.0, mask=None):
        y = self.out(self.mix(torch.relu(self.stem(x)))) * scale
        return y if mask is None else y * mask


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, ids):
        return self.head(self.table(ids))


class Raises(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError("the model's own")


def broken(name="x"):
    raise KeyError("config.yaml")


def leaves():
    raise SystemExit(3)


def number():
    return 3


def with_inputs():
    return Net(), (torch.randn(2, 3, 16, 16),), {"scale": 2.0}


MODEL = Net()
THREE = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: `nets_here.py`, and what Python finds there."""
    (tmp_path / "nets_here.py").write_text(NETS)
    (tmp_path / "wrong_here.py").write_text("import torch\nthis is no Python\n")
    (tmp_path / "needs_here.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CE_FX_TUNE", "0")
    threads = torch.get_num_threads()
    yield tmp_path
    for name in ("nets_here", "wrong_here", "needs_here"):
        sys.modules.pop(name, None)
    torch.set_num_threads(threads)
    torch._dynamo.reset()
