"""Assertions about dtypes that `torch.export` writes end no region."""

import torch
from torch import nn

import ce_fx


class Cast(nn.Module):
    """A chain of products with `.to` in between, which does nothing."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(32, 8, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(8, 32, dtype=torch.float64))
        self.c = nn.Parameter(torch.randn(32, 3, dtype=torch.float64))

    def forward(self, x):
        y = (x.to(torch.float64) @ self.a).to(torch.float64) @ self.b
        return y.to(x.device, torch.float64) @ self.c


class Kept(nn.Module):
    """One product, and a `.to` behind it."""

    def forward(self, x):
        return (x @ x.T).to(torch.float64).relu()


ASSERT = torch.ops.aten._assert_tensor_metadata.default


def asserts(gm):
    return len(gm.graph.find_nodes(op="call_function", target=ASSERT))


def test_a_region_reaches_across_them():
    model, x = Cast(), torch.randn(64, 32, dtype=torch.float64)
    gm = ce_fx.capture(model, (x,))
    assert asserts(gm) == 3
    fast = ce_fx.rewrite(gm, [x], objective="flops", tune=False)
    assert asserts(fast) == 1, "what it may be called with is still checked"
    torch.testing.assert_close(fast(x), model(x), rtol=1e-10, atol=1e-10)
    products = fast.graph.find_nodes(op="call_function", target=torch.mm)
    assert [node.target for node in products[0].args] == ["b", "c"], "weights come first"


def test_they_stay_where_nothing_is_rewritten():
    x = torch.randn(2, 3, dtype=torch.float64)
    gm = ce_fx.capture(Kept(), (x,))
    same = ce_fx.rewrite(gm, [x], objective="flops", tune=False)
    assert asserts(gm) == 1 and same.code == gm.code
