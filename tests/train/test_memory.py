"""`memory_limit` and `objective="memory"`: the bytes of what is made on the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ce_fx
from tests.train.kept import OPTIONS, gradients, made, same


class Sizes(TorchDispatchMode):
    """Bytes of the largest new tensor."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


class Wide(nn.Module):
    """Left to right its first product is large; the other way round nothing is."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(512, 8) / 3), nn.Parameter(torch.randn(8, 512) / 23)

    def forward(self, x):
        return F.linear(F.linear(x, self.a), self.b)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_intermediate_of_forward_or_backward_is_over_the_limit(checkpointed):
    model = Wide().double()
    x = torch.randn(400, 8, dtype=torch.float64, requires_grad=True)
    limit = 400 * 8 * 8
    with Sizes() as written:
        model(x).sum().backward()
    assert written.largest > limit
    fast = ce_fx.optimize(model, (x,), memory_limit=limit, checkpoint=checkpointed, **OPTIONS)
    found, _ = gradients(fast, model, x)
    same(found, gradients(model, model, x)[0])
    new = ce_fx.rewrite(torch.fx.symbolic_trace(model), (x,), memory_limit=limit, checkpoint=checkpointed, **OPTIONS)
    with Sizes() as sizes:
        torch.autograd.grad(new(x), [x, *new.parameters()], torch.ones_like(x))
    assert sizes.largest <= max(limit, *(p.numel() * 8 for p in model.parameters()))  # gradients are as large as they


class Wider(nn.Module):
    """A convolution through four times as many channels."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Conv2d(4, 16, 1, bias=False), nn.Conv2d(16, 4, 3, padding=1, bias=False)

    def forward(self, x):
        return self.c(self.a(x))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_limit_holds_for_a_convolution_by_time(checkpointed):
    torch.manual_seed(0)
    model = Wider().double()
    x = torch.randn(4, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    limit = x.numel() * 8
    options = {"memory_limit": limit, "checkpoint": checkpointed, "tune": False, "objective": "time"}
    with Sizes() as written:
        torch.autograd.grad(model(x), [x, *model.parameters()], torch.ones_like(x))
    assert written.largest == 4 * limit
    fast = ce_fx.optimize(model, (x,), **options)
    same(gradients(fast, model, x)[0], gradients(model, model, x)[0])
    new = ce_fx.rewrite(torch.fx.symbolic_trace(model), (x,), **options)
    with Sizes() as sizes:
        torch.autograd.grad(new(x), [x, *new.parameters()], torch.ones_like(x))
    assert sizes.largest == limit


class Padded(nn.Module):
    """A convolution through four times as many channels, padded by one more on the right: that is a copy."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Conv1d(4, 16, 1, bias=False), nn.Conv1d(16, 4, 4, padding="same", bias=False)

    def forward(self, x):
        return self.c(self.a(x))


@pytest.mark.parametrize(("bytes_", "rewritten"), [(8 * 8 * 4 * 64, 0), (8 * 8 * 4 * 65, 1)])
def test_a_limit_holds_for_a_padded_copy(bytes_, rewritten):
    torch.manual_seed(0)
    model = Padded().double()
    x = torch.randn(8, 4, 64, dtype=torch.float64, requires_grad=True)
    fast = ce_fx.optimize(model, (x,), memory_limit=bytes_, **OPTIONS)
    same(gradients(fast, model, x)[0], gradients(model, model, x)[0])
    (row,) = ce_fx.report(fast).layers
    assert row.decision == ("rewritten" if rewritten else "refused")
    assert rewritten or "would take 16640 bytes, more than the memory limit of 16384" in row.reason
    new = ce_fx.rewrite(torch.fx.symbolic_trace(model), (x,), memory_limit=bytes_, **OPTIONS)
    with Sizes() as sizes:
        new(x)
    assert (sizes.largest <= bytes_) == bool(rewritten)


@pytest.mark.parametrize(("elements", "rewritten"), [(2, 0), (4, 1)])
def test_a_limit_holds_for_a_product_of_weights_under_autocast(elements, rewritten):
    """It is in full precision, and what is planned is in autocast's."""

    class Low(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 256, bias=False), nn.Linear(256, 32, bias=False)

        def forward(self, x):
            return self.b(self.a(x))

    torch.manual_seed(0)
    model, x = Low(), torch.randn(32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        fast = ce_fx.optimize(model, (x,), memory_limit=elements * 32 * 32, **OPTIONS)
        torch.testing.assert_close(fast(x), model(x), rtol=0.05, atol=0.05)
    assert ce_fx.report(fast).count("rewritten") == rewritten


# --- little memory at nearly the best time


def test_memory_in_training_is_what_is_saved_at_no_more_than_a_tenth_over_the_best_time():
    torch.manual_seed(0)
    model, x = made("factorised")
    fast = ce_fx.optimize(model, (x,), objective="memory", tune=False)
    timed = ce_fx.optimize(model, (x,), objective="time", tune=False)
    (expected, before), (found, kept), (_, by_time) = (gradients(run, model, x) for run in (model, fast, timed))
    same(found, expected)
    assert kept < before
    assert kept <= by_time
    seconds = {run: ce_fx.report(run).time_after for run in (fast, timed)}
    assert seconds[fast] <= 1.1 * min(seconds[timed], ce_fx.report(timed).time_before) * 1.0001


def test_memory_with_recomputation_costs_no_more_than_a_tenth_of_the_time_either():
    """Merged there is no wide intermediate, and far more to do."""
    model = nn.Sequential(nn.Linear(64, 8192, bias=False), nn.Linear(8192, 64, bias=False))
    options = {"objective": "memory", "tune": False}
    x = torch.randn(16, 64, requires_grad=True)
    with torch.no_grad():
        assert ce_fx.report(ce_fx.optimize(model, (x,), **options)).count("rewritten")
    fast = ce_fx.optimize(model, (x,), checkpoint=True, **options)
    assert ce_fx.report(fast).count("rewritten") == 0
    same(gradients(fast, model, x)[0], gradients(model, model, x)[0], 1e-5)
