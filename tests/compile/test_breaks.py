"""Graph breaks in the report: where, why, which region they part and what that costs."""

import re

import pytest
import torch
from torch import nn

import ce_fx
from ce_fx.session import Session
from ce_fx.watch import Break


class Broken(nn.Module):
    """A narrow product, a graph break, and a product that widens: as one, `x @ (a @ b)` would be cheaper."""

    def __init__(self, between=print, size=32):
        super().__init__()
        self.between = between
        self.a = nn.Linear(size, size, bias=False)
        self.b = nn.Linear(size, 2, bias=False)

    def forward(self, x, *shown):
        y = self.a(x)
        self.between(*shown)
        return self.b(y)


def breaks(fast):
    return [note for note in ce_fx.report(fast).notes if note.startswith("graph break")]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_a_region_that_a_break_parts_and_what_it_costs(train, dynamic):
    model = Broken()
    with torch.set_grad_enabled(train):
        fast = ce_fx.optimize(model, (torch.randn(48, 32),), objective="flops", tune=False, dynamic=dynamic)
    (note,) = breaks(fast)
    line = Broken.forward.__code__.co_firstlineno + 2
    assert note.startswith(
        f"graph break at {__file__}:{line} (self.between(*shown)): Failed to trace builtin operator; "
    )
    # forward and the gradients that are needed: of both weights and of what b is given
    apart = 2 * 48 * 32 * 32 * (2 if train else 1) + 2 * 48 * 32 * 2 * (3 if train else 1)
    one = 2 * 32 * 32 * 2 * (3 if train else 1) + 2 * 48 * 32 * 2 * (2 if train else 1)
    assert f"it parts a | b: as one {one / 1e3:.4g} k FLOPs in place of {apart / 1e3:.4g} k, predicted" in note
    assert sum(layer.flops_before for layer in ce_fx.report(fast).layers) == apart


def test_a_break_that_parts_nothing_says_so():
    class Net(Broken):
        def forward(self, x):
            y = torch.relu(self.a(x))
            print()
            return self.b(y)

    fast = ce_fx.optimize(Net(), (torch.randn(48, 32),), objective="flops", tune=False)
    (note,) = breaks(fast)
    assert note.endswith("; without it no region would reach further and gain by that")


def test_weights_that_both_sides_read_are_one_leaf():
    class Net(Broken):
        def forward(self, x):
            y = x @ self.a.weight
            print()
            return y @ self.a.weight @ self.b.weight.t()

    fast = ce_fx.optimize(Net(), (torch.randn(48, 32),), objective="flops", tune=False)
    (note,) = breaks(fast)
    (behind,) = [layer for layer in ce_fx.report(fast).layers if layer.decision == "rewritten"]
    assert "it parts " in note and behind.flops_after < behind.flops_before


def test_a_break_that_cannot_be_priced_is_named_all_the_same(monkeypatch):
    def fails(*args):
        raise RuntimeError("no price")

    monkeypatch.setattr("ce_fx.session.parted", fails)
    fast = ce_fx.optimize(Broken(), (torch.randn(48, 32),), objective="flops", tune=False)
    (note,) = breaks(fast)
    assert note.endswith(": Failed to trace builtin operator")


def test_what_a_break_costs_is_worked_out_once(monkeypatch):
    calls = []
    monkeypatch.setattr("ce_fx.session.parted", lambda *args: calls.append(args) or [])
    fast = ce_fx.optimize(Broken(), (torch.randn(48, 32),), objective="flops", tune=False)
    assert breaks(fast) == breaks(fast) and len(calls) == 1
    repr(fast)
    assert len(calls) == 1


def test_a_frame_that_is_skipped_is_named():
    class Net(Broken):
        def forward(self, x):
            for _ in range(3):
                x = torch.relu(self.a(x))
                if x.max() < 0.1:
                    break
            return self.b(x)

    fast = ce_fx.optimize(Net(), (torch.randn(48, 32),), tune=False)
    (note,) = breaks(fast)
    place = f"{re.escape(__file__)}:{Net.forward.__code__.co_firstlineno} \\(forward\\)"
    assert re.search(f"{place}: what runs next depends on data; of this function Dynamo captures only", note)


def test_nothing_is_said_where_nothing_broke():
    fast = ce_fx.optimize(Broken(between=lambda: None), (torch.randn(48, 32),), objective="flops", tune=False)
    assert not breaks(fast)
    assert not ce_fx.report(fast).notes


def test_a_break_in_a_library_is_named_by_its_innermost_line(monkeypatch):
    monkeypatch.setattr("ce_fx.watch._is_library", lambda file: True)
    fast = ce_fx.optimize(Broken(), (torch.randn(48, 32),), tune=False)
    assert breaks(fast)[0].startswith(f"graph break at {__file__}:")


def test_what_cannot_be_told_ends_no_call(monkeypatch):
    def fails(*args):
        raise RuntimeError("no news")

    monkeypatch.setattr("ce_fx.watch._missed", fails)
    model, x = Broken(), torch.randn(48, 32)
    torch.testing.assert_close(ce_fx.optimize(model, tune=False)(x), model(x))


def test_breaks_of_another_model_are_not_this_ones():
    ours, theirs = (ce_fx.optimize(Broken(between=run), tune=False) for run in (lambda: None, print))
    ours(torch.randn(48, 32))
    theirs(torch.randn(48, 32))
    torch.compile(Broken(), backend="eager")(torch.randn(4, 32))
    assert not breaks(ours) and len(breaks(theirs)) == 1


def test_a_break_after_ops_is_no_skipped_frame():
    session = Session.__new__(Session)
    session.skipped, session.compiled = [], []
    session.missed(Break("why", "f", "net.py", 3), "0/0")
    session.missed(Break("why", "f", "net.py", 3), "0/1")
    assert [str(each) for each in session.skipped] == ["net.py:3 (f): why"]
