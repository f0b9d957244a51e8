"""The report says what `fold=True` would save: the steps on weights only of what runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ce_fx


class Rebuilt(nn.Module):
    """A TT layer whose kernel is put together in every call; features are so many that it stays so."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(16, 12)), nn.Parameter(torch.randn(12, 9, 12))
        self.c = nn.Parameter(torch.randn(12, 16))

    def forward(self, x):
        kernel = torch.einsum("tp,pkq,qs->tsk", self.a, self.b, self.c).reshape(16, 16, 3, 3)
        return F.conv2d(x, kernel, padding=1).relu()


class Merged(nn.Module):
    """A linear layer into which its adapter is merged in every call."""

    def __init__(self):
        super().__init__()
        self.w, self.a = nn.Linear(64, 64), nn.Parameter(torch.randn(16, 64))
        self.b = nn.Parameter(torch.randn(64, 16))

    def forward(self, x):
        return F.linear(x, self.w.weight + self.b @ self.a, self.w.bias).relu()


def test_a_kernel_that_is_put_together_in_every_call():
    model, x = Rebuilt().eval(), torch.randn(8, 16, 64, 64)
    report = ce_fx.audit(model, (x,), tune=False)
    (row,) = report.layers
    dense = 2 * 8 * 64 * 64 * 16 * 16 * 9
    assert row.foldable_flops > 0 and row.flops_after == dense + row.foldable_flops
    assert 0 < row.foldable_time < row.time_after
    assert "fold: one row has steps on weights only; fold=True" in str(report)
    folded = ce_fx.audit(model, (x,), tune=False, fold=True)
    assert folded.flops_after == dense
    assert folded.layers[0].foldable_flops is None and "would save" not in str(folded)


def test_an_adapter_that_is_merged_in_every_call():
    report = ce_fx.audit(Merged().eval(), (torch.randn(4096, 64),), tune=False)
    assert [row.foldable_flops for row in report.layers] == [2 * 64 * 16 * 64]
    assert report.to_dict()["layers"][0]["foldable_time"] > 0


@pytest.mark.parametrize("train", [True, False])
def test_nothing_to_say_in_training_or_where_every_step_meets_features(train):
    model = Merged() if train else nn.Linear(64, 64)
    report = ce_fx.audit(model, (torch.randn(4096, 64),), train=train, tune=False)
    assert all(row.foldable_flops is None for row in report.layers) and "fold=True" not in str(report)
