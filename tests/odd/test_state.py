"""State that changes between calls: counters, flags, children."""

import copy
import warnings

import pytest
import torch
from torch import nn

import ce_fx
from tests.odd.models import Branchless, Chain, Odd, assert_captured_whole, assert_rewritten, linears, same, view


class Counting(Odd):
    """Counts its calls, and does something else at every third."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.step(x)
        return self.back(y) if self.calls % 3 == 0 else y * self.calls


def test_a_python_counter(via, x):
    model = Counting().double()
    twin, fast = copy.deepcopy(model), via(model)
    for n in range(1, 8):
        same(fast, model, twin, x)
        assert fast.calls == twin.calls == n
    assert_rewritten(fast)
    assert_captured_whole(fast)


@pytest.mark.filterwarnings("ignore:ce_fx. Counting:UserWarning")
def test_many_counts_end_in_the_model_as_written(x):
    """Dynamo gives up on a number that never comes again; the values stay right."""
    model = Counting().double()
    twin, fast = copy.deepcopy(model), view(model)
    for _ in range(12):
        same(fast, model, twin, x)
    assert fast.calls == twin.calls == 12
    assert len(ce_fx.graph_modules(fast)) == torch._dynamo.config.recompile_limit


def test_a_model_that_dynamo_gave_up_on_says_so_once(x):
    fast = view(Counting().double())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            fast(x)
    (said,) = [str(each.message) for each in caught if "ce_fx" in str(each.message)]
    assert said.startswith("ce_fx: Counting: a part of the model was compiled 8 times") and "model.calls == 6" in said
    assert said.removeprefix("ce_fx: Counting: ") in ce_fx.report(fast).notes


def test_sizes_that_reach_the_limit_are_named(x):
    fast = ce_fx.optimize(linears().double(), dynamic=False)
    with pytest.warns(UserWarning, match=r"What varied: tensor '.*' size mismatch at index 0. expected 7, actual 8\. "):
        for rows in range(1, 10):
            fast(x[:rows])


def test_a_counter_in_a_buffer(via, x):
    class Net(Odd):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.register_buffer("mean", torch.zeros(12))

        def forward(self, x):
            self.count += 1
            y = self.step(x)
            with torch.no_grad():
                self.mean.lerp_(y.mean(0), 0.1)
            return self.back(y) - self.mean

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for _ in range(4):
        same(fast, model, twin, x)
    assert model.count == 4
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_list_that_grows(via, x):
    class Net(Odd):
        def __init__(self):
            super().__init__()
            self.kept = []

        def forward(self, x):
            y = self.step(x)
            self.kept.append(y.detach())
            return self.back(y)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for n in range(1, 4):
        same(fast, model, twin, x)
        assert len(model.kept) == len(twin.kept) == n
        torch.testing.assert_close(model.kept, twin.kept)


def test_a_flag_that_is_flipped(via, x):
    class Net(Odd):
        def __init__(self):
            super().__init__()
            self.deep = False
            self.config = {"scale": 1.0}

        def forward(self, x):
            y = self.step(x) * self.config["scale"]
            return self.back(y) if self.deep else y

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for deep, scale in ((False, 1.0), (True, 1.0), (False, 3.0), (True, 3.0), (False, 1.0)):
        for m in (fast, twin):
            m.deep = deep
        for m in (model, twin):
            m.config["scale"] = scale
        same(fast, model, twin, x)
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_attributes_are_of_each_object_and_those_of_sub_modules_of_both(x):
    model = nn.Sequential(Counting()).double()
    twin, fast = copy.deepcopy(model), view(model)
    same(fast, model, twin, x)
    assert model[0].calls == fast[0].calls == 1
    model.note, fast.remark = 1, 2
    assert not hasattr(fast, "note") and not hasattr(model, "remark")


def test_a_child_is_replaced(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    model.chain = Chain(out=12).double()
    twin.chain = copy.deepcopy(model.chain)
    same(fast, model, twin, x)
    model.chain = nn.Sequential(linears(12), nn.ReLU()).double()
    twin.chain = copy.deepcopy(model.chain)
    same(fast, model, twin, x)
    model.chain, twin.chain = nn.Identity(), nn.Identity()
    same(fast, model, twin, x)
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_a_child_of_the_view_is_replaced(x):
    model = Branchless().double()
    fast = view(model)
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    fast.chain = Chain(out=12).double()
    twin.chain = copy.deepcopy(fast.chain)
    same(fast, fast, twin, x)
    assert fast.chain is model.chain


def test_a_forward_that_is_replaced(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    for m in (model, twin):
        m.chain.forward = lambda x, chain=m.chain: x @ chain.b @ chain.a
    same(fast, model, twin, x)
    assert_rewritten(fast)
