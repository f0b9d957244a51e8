"""What the tests of `fold=True` share."""

import pytest
import torch

from ce_fx import fold
from tests.fold.models import Standardised


@pytest.fixture
def net():
    return Standardised().double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 4, 6, 6, dtype=torch.float64)


@pytest.fixture
def made(monkeypatch):
    """A list that grows by one whenever folded values are computed."""
    times = []
    values = fold.Fold._values

    def counting(self, sources):
        times.append(self)
        return values(self, sources)

    monkeypatch.setattr(fold.Fold, "_values", counting)
    return times
