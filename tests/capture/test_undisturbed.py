"""A model that ran undisturbed is what it was."""

import pytest
import torch
from torch import nn

from ce_fx.capture.undisturbed import undisturbed


class Counting(nn.Module):
    """Keeps its count in a buffer that every call replaces by another tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.calls = self.calls + 1
        return x


def test_statistics_modes_and_random_state_come_back():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), Counting())
    model[1].eval()
    objects = dict(model.named_buffers())
    values = {name: buffer.clone() for name, buffer in objects.items()}
    state = torch.get_rng_state()
    with undisturbed(model):
        model.train()
        model(torch.randn(4, 3))
        assert model[0].num_batches_tracked == 1 and model[2].calls == 1
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(buffer is objects[name] for name, buffer in model.named_buffers())
    assert all(torch.equal(buffer, values[name]) for name, buffer in model.named_buffers())


def test_they_come_back_after_an_error_too():
    model = nn.BatchNorm1d(3)
    with pytest.raises(ArithmeticError), undisturbed(model):
        model(torch.randn(4, 3))
        model.eval()
        raise ArithmeticError
    assert model.training and model.num_batches_tracked == 0


def test_what_did_not_change_is_not_written():
    """A write would bump the version that autograd checks, and copy memory."""
    model = nn.BatchNorm1d(3).eval()
    versions = [buffer._version for buffer in model.buffers()]
    with undisturbed(model):
        model(torch.randn(4, 3))
    assert [buffer._version for buffer in model.buffers()] == versions


def test_buffers_without_memory_are_no_hindrance():
    with undisturbed(nn.BatchNorm1d(3, device="meta")) as nothing:
        assert nothing is None
