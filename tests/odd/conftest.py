"""The two doors that odd models go through, and what they are given."""

import pytest
import torch

from tests.odd.models import backend, handing_on_is_seen, view


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    handing_on_is_seen(monkeypatch)


@pytest.fixture(params=[view, backend], ids=["view", "backend"])
def via(request):
    return request.param


@pytest.fixture
def x():
    return torch.randn(48, 12, dtype=torch.float64)
