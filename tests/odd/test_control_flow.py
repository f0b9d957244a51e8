"""Control flow, loops, graph breaks, generators: what is captured, and what the report says of the rest."""

import copy

import torch
from torch import nn

import ce_fx
from tests.odd.models import (
    Chain,
    Odd,
    assert_break_is_named,
    assert_captured_whole,
    assert_rewritten,
    is_view,
    same,
    view,
)


class Branching(Odd):
    def forward(self, x):
        y = self.step(x)
        if x.sum() > 0:
            y = self.back(y) + 1
        return y


def test_control_flow_on_data(via, x):
    model = Branching().double()
    twin, fast = copy.deepcopy(model), via(model)
    for inputs in (x.abs(), -x.abs(), x.abs()):
        same(fast, model, twin, inputs)
    assert_rewritten(fast, 2)
    assert_break_is_named(fast)


def test_where_the_graph_broke_is_named(x):
    fast = view(Branching().double())
    fast(x)
    line = Branching.forward.__code__.co_firstlineno + 2
    place = f"graph break at {__file__}:{line} (if x.sum() > 0:): what runs next depends on data"
    assert any(note.startswith(place) for note in ce_fx.report(fast).notes)


class Stopping(nn.Module):
    """A loop over layers that is left early, by the data: Dynamo runs the loop as written, and captures the layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Chain(out=12), Chain(out=12), Chain(out=12)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if x.abs().max() < 0.1:
                break
        return x


def test_a_loop_that_stops_on_data(via, x):
    model = Stopping().double()
    twin, fast = copy.deepcopy(model), via(model)
    for inputs in (x, x / 100, x):
        ours, theirs = fast(inputs), twin(inputs)
        torch.testing.assert_close(ours, theirs)
        grads = [torch.autograd.grad(y.sum(), m.layers[0].a)[0] for y, m in ((ours, model), (theirs, twin))]
        torch.testing.assert_close(*grads)
    assert_rewritten(fast)


def test_a_loop_that_stops_on_data_is_named(x):
    fast = view(Stopping().double())
    fast(x)
    assert_break_is_named(fast)


class Block(nn.Module):
    """A chain, and a graph break after it."""

    def __init__(self, out):
        super().__init__()
        self.chain = Chain(out=out)

    def forward(self, x):
        y = self.chain(x)
        torch._dynamo.graph_break()
        return torch.tanh(y)


def test_blocks_that_break_the_graph(via, x):
    model = nn.Sequential(Block(12), Block(2)).double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)
    assert_break_is_named(fast)


def test_every_block_that_breaks_the_graph_is_in_the_report(x):
    fast = view(nn.Sequential(Block(12), Block(2)).double())
    with torch.no_grad():
        fast(x)
    expected = sum(2 * 48 * 12 * (12 + out) for out in (12, 2))
    assert ce_fx.report(fast).flops_before == expected and ce_fx.report(fast).count("rewritten") == 2


class Disabled(Odd):
    @torch._dynamo.disable
    def forward(self, x):
        return self.step(x)


def test_a_model_that_is_not_captured_at_all(via, x):
    model = Disabled().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert not is_view(fast) or not ce_fx.graph_modules(fast)


def test_a_model_that_is_not_captured_at_all_says_so(x):
    fast = view(Disabled().double())
    fast(x)
    (row,) = ce_fx.report(fast).layers
    assert row.reason.startswith("nothing was captured; the model runs as written") and row.flops_before is None
    assert "not captured yet" not in repr(fast)


def test_printing_in_between(via, x, capsys):
    class Net(Odd):
        def forward(self, x):
            y = self.step(x)
            print("mean", y.mean().item() > 2)
            return self.back(y)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert capsys.readouterr().out == "mean False\n" * 2
    assert_rewritten(fast, 2)
    assert_break_is_named(fast)


def test_a_generator_in_forward(via, x):
    class Net(Odd):
        def states(self, x):
            for chain in (self.chain, self.back):
                x = torch.tanh(chain(x))
                yield x

        def forward(self, x):
            return torch.cat([*self.states(x)]) + sum(state.sum() for state in self.states(x))

    model = Net(12).double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_model_that_returns_a_generator(via, x):
    class Net(Odd):
        def forward(self, x):
            return (torch.tanh(chain(x)) for chain in (self.chain, self.back))

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x, call=lambda run, x: list(run(x)))


def test_gradients_that_are_switched_off_between_two_products(via, x):
    """As one, the first product would lose its gradient or the second get one."""

    class Net(Odd):
        def forward(self, x):
            y = x @ self.chain.a
            with torch.no_grad():
                z = y @ self.chain.b
            with torch.autocast("cpu", enabled=False):
                return z @ self.back.a @ self.back.b + y @ self.back.b

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for _ in range(2):
        same(fast, model, twin, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), twin(x))
    assert model.chain.b.grad is None
    assert_captured_whole(fast)
