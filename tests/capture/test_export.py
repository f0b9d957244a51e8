"""The second door: one static graph by torch.export."""

import numpy as np
import pytest
import torch
from torch import nn

import ce_fx
from tests.models import factorized_conv


def test_parameters_are_the_models_own_and_follow_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 6, 6)
    gm = ce_fx.capture(model, (x,))
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    assert {id(t) for t in gm.parameters()} == {id(t) for t in model.parameters()}
    assert {id(t) for t in gm.buffers()} <= own
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[1].running_mean.add_(1)
    torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)


def test_numpy_attributes_are_back_after_the_capture():
    layer = factorized_conv(8, 8).eval()
    assert isinstance(layer.stride, np.ndarray)
    x = torch.randn(1, 8, 5, 5)
    gm = ce_fx.capture(layer, (x,))
    assert isinstance(layer.stride, np.ndarray)
    torch.testing.assert_close(gm(x), layer(x))


def test_keyword_inputs_and_a_dynamic_batch():
    class Net(nn.Module):
        def forward(self, x, *, w):
            return torch.einsum("bi,ij->bj", x, w)

    batch = torch.export.Dim("batch", min=2, max=64)
    x, w = torch.randn(4, 3), torch.randn(3, 5)
    gm = ce_fx.capture(Net(), (x,), {"w": w}, dynamic_shapes={"x": {0: batch}, "w": None})
    y = torch.randn(7, 3)
    torch.testing.assert_close(gm(y, w=w), y @ w)


def test_what_cannot_be_exported_is_told_with_the_cure():
    class Branching(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ce_fx.CaptureError, match="could not capture Branching: .* Use ce_fx.optimize") as caught:
        ce_fx.capture(Branching(), (torch.randn(3),))
    assert isinstance(caught.value, RuntimeError) and isinstance(caught.value, ce_fx.CeFxError)
    assert caught.value.__cause__ is not None
