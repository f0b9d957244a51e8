"""Values with several users: read, or computed again where that costs less."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import ce_fx
from tests.lift.helpers import rand, regions_of

# The package has functions under these names, too.
deciding, rewriting = import_module("ce_fx.decide"), import_module("ce_fx.rewrite")


def widened(x, a, b, c):
    """x is widened a lot; others read that, too."""
    h = x @ a
    return torch.relu(h), h @ b, h @ c


def resized(x, a, b):
    h = F.conv2d(F.interpolate(x, scale_factor=4, mode="bilinear"), a)
    return h.tanh(), F.conv2d(h, b)


def narrowed(x, a, b):
    """To compute it again costs more than to read it."""
    h = x @ a
    return torch.relu(h), h @ b


def chained(x, a, b, c):
    """What is computed again reads what others read."""
    h = x @ a
    k = h @ b
    return h.relu(), k.relu(), k @ c


WIDENED = rand(400, 16), rand(16, 512), rand(512, 8), rand(512, 9)
RESIZED = rand(2, 8, 6, 6), rand(64, 8, 1, 1), rand(4, 64, 1, 1)
NARROWED = rand(400, 512), rand(512, 16), rand(16, 300)
CHAINED = rand(400, 8), rand(8, 512), rand(512, 256), rand(256, 2)


def rewritten(function, inputs, **options):
    gm = torch.fx.symbolic_trace(function)
    return gm, ce_fx.rewrite(gm, inputs, tune=False, **{"objective": "flops", **options})


@pytest.mark.parametrize("objective", ["flops", "time"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("function", "inputs"), [(widened, WIDENED), (resized, RESIZED), (chained, CHAINED)])
def test_computed_again(function, inputs, training, objective):
    inputs = [tensor.clone().requires_grad_(training) for tensor in inputs]
    gm, fast = rewritten(function, inputs, objective=objective)
    assert fast.code != gm.code
    expected, found = function(*inputs), fast(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if training:
        gradients = [torch.autograd.grad(sum(y.square().sum() for y in ys), inputs) for ys in (expected, found)]
        for found, expected in zip(gradients[1], gradients[0], strict=True):  # sums of 10^5 squares
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * expected.abs().max().item())


def test_the_report_says_so_and_counts_what_it_costs():
    rows = ce_fx.audit(torch.fx.symbolic_trace(widened), WIDENED, objective="flops", tune=False).layers
    first, second, third = rows
    assert first.decision == "kept" and (second.decision, third.decision) == ("rewritten", "rewritten")
    assert second.reason == "14.0x fewer FLOPs; computes matmul again, which others read too"
    assert second.flops_before == 2 * 400 * 512 * 8, "what it reads is there in any case"
    assert second.flops_after == 2 * (16 * 512 * 8 + 400 * 16 * 8)


@pytest.mark.parametrize("options", [{}, {"objective": "time"}, {"objective": "memory"}])
def test_read_where_that_costs_less(options):
    gm, fast = rewritten(narrowed, NARROWED, **options)
    assert fast.code == gm.code


def test_nothing_more_is_planned_where_reading_it_costs_no_more_flops(monkeypatch):
    """An order with more FLOPs than needed was chosen, as the faster one: a wider region has nothing to add."""
    decided = []
    real = deciding.decide
    monkeypatch.setattr(deciding, "decide", lambda region, context: decided.append(region) or real(region, context))

    def slower(region, context):
        decision = real(region, context)
        return replace(decision, after=replace(decision.after, flops=100 * decision.after.flops))

    monkeypatch.setattr(rewriting, "decide", slower)
    rewritten(narrowed, NARROWED)
    assert not decided
    rewritten(widened, WIDENED)
    assert decided


def test_memory_is_not_saved_by_it():
    gm, fast = rewritten(widened, WIDENED, objective="memory")
    assert fast.code == gm.code


def test_regions_are_those_without_it():
    found, _ = regions_of(widened, *WIDENED)
    assert [len(region.leaves) for region in found.regions] == [2, 2, 2]
    assert {str(output): [len(one.leaves) for one in wider] for output, wider in found.again.items()} == {
        "matmul_1": [4],  # x, a and b, and what is computed again
        "matmul_2": [4],
    }


def test_no_sum_is_computed_again():
    """In `x + y` nothing is multiplied with x: there is nothing to gain."""

    def residual(x, a, b):
        h = x + x @ a
        return h.relu(), h + x @ b

    found, _ = regions_of(residual, rand(4, 8), rand(8, 8), rand(8, 8))
    assert not found.again


def test_a_leaf_that_is_written_to_in_between():
    def function(x, a, b):
        h = x @ a
        y = h.relu()
        x.mul_(2)
        return y, h @ b

    inputs = rand(400, 4), rand(4, 512), rand(512, 3)
    gm = torch.fx.symbolic_trace(function)
    fast = ce_fx.rewrite(gm, inputs, objective="flops", tune=False)
    again = [tensor.clone() for tensor in inputs]
    torch.testing.assert_close(fast(*inputs), gm(*again))


@pytest.mark.parametrize("write", [lambda h: h[:, :1].fill_(0.5), lambda h: h.mul_(2)])
def test_a_value_that_was_written_to_is_not_computed_again(write):
    def function(x, a, b):
        h = x @ a
        y = h.relu()
        write(h)
        return y, h @ b

    inputs = rand(400, 4), rand(4, 512), rand(512, 3)
    gm = torch.fx.symbolic_trace(function)
    for objective in ("flops", "time"):
        fast = ce_fx.rewrite(gm, inputs, objective=objective, tune=False, verify=False)
        torch.testing.assert_close(fast(*inputs), gm(*inputs))


def test_a_value_that_is_wrong_is_found(monkeypatch):
    """What is verified is the value from the leaves on, not from what is read."""
    from ce_fx import decide

    checked = []
    real = decide.mismatch
    monkeypatch.setattr(decide, "mismatch", lambda *args: checked.append(args) or real(*args))
    rewritten(widened, WIDENED, verify=True)
    written, module, leaves, *_ = checked[-1]
    assert len(leaves) == 4
    names = [node.target for node in written.graph.nodes if node.op == "call_function"]
    assert len(names) == 2, "both products"
