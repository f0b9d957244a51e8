"""Models that call opt_einsum between layers are one graph, and its path search is none of the plan's business."""

import copy

import opt_einsum
import pytest
import torch
from torch import nn

import ce_fx


class Net(nn.Module):
    def __init__(self, contract=opt_einsum.contract):
        super().__init__()
        self.contract = contract
        self.first, self.last = nn.Linear(12, 12), nn.Linear(2, 12)
        self.a, self.b = nn.Parameter(torch.randn(12, 12)), nn.Parameter(torch.randn(12, 2))

    def forward(self, x):
        return self.last(self.contract("xi,ij,jk->xk", self.first(x), self.a, self.b))


@pytest.mark.parametrize("train", [False, True])
def test_a_contraction_between_layers(train):
    model, x = Net().double(), torch.randn(48, 12, dtype=torch.float64, requires_grad=train)
    twin = copy.deepcopy(model)
    with torch.set_grad_enabled(train):
        fast = ce_fx.optimize(model, (x,), objective="flops", tune=False, fullgraph=True)
        torch.testing.assert_close(fast(x), twin(x))
    report = ce_fx.report(fast)
    assert report.count("rewritten") == len(report.layers) == 1 and report.flops_after < report.flops_before / 2
    if train:
        fast(x).square().sum().backward()
        twin(x).square().sum().backward()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_options_and_the_other_notation_of_a_contraction():
    def contract(_, x, a, b):
        y = opt_einsum.contract(x, "xi", a, "ij", ["x", "j"], optimize="greedy", backend="torch")
        return opt_einsum.contract("xi,ij->xj", y, b, memory_limit="max_input")

    model, x = Net(contract).double(), torch.randn(48, 12, dtype=torch.float64)
    fast = ce_fx.optimize(model, (x,), objective="flops", tune=False, fullgraph=True)
    torch.testing.assert_close(fast(x), model(x))
    assert ce_fx.report(fast).count("rewritten") == 1


def test_several_batches():
    model = Net().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    for rows in (48, 20, 31, 17, 48):
        x = torch.randn(rows, 12, dtype=torch.float64)
        torch.testing.assert_close(fast(x), model(x))
