"""Shared parts, tied weights, lists and dicts of modules, lazy modules."""

import copy

import pytest
import torch
from torch import nn

import ce_fx
from tests.odd.models import OPTIONS, Chain, assert_captured_whole, assert_rewritten, linears, same, view


def test_a_shared_sub_module(via, x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = Chain(out=12)
            self.b = nn.Parameter(torch.randn(12, 2))

        def forward(self, x):
            return self.second(self.first(x)) @ self.b, torch.tanh(self.first(x) @ self.b)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert fast.first is fast.second is model.first
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_tied_weights(via, x):
    """One embedding, read at the bottom and multiplied by at the top."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 12)
            self.body = linears(out=12)
            self.head = nn.Linear(12, 20, bias=False)
            self.head.weight = self.embedding.weight
            self.body[1].weight = self.body[0].weight

        def forward(self, tokens):
            return self.head(self.body(torch.tanh(self.embedding(tokens))))

    model, tokens = Net().double(), torch.arange(240).reshape(12, 20) % 20
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, call=lambda run: run(tokens))
    assert len(dict(fast.named_parameters())) == 2
    with torch.no_grad():
        for m in (model, twin):
            m.head.weight.mul_(2)
    same(fast, model, twin, call=lambda run: run(tokens))
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_a_loop_over_a_module_list(via, x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Chain(out=12) for _ in range(3))
            self.head = nn.Parameter(torch.randn(12, 1))
            self.skip = None

        def forward(self, x):
            for n, layer in enumerate(self.layers):
                x = x if n == self.skip else torch.tanh(layer(x))
            return self.layers[-1](x) @ self.head

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    for m in (model, twin):
        m.layers.append(Chain(out=12).double())
    twin.layers[-1].load_state_dict(model.layers[-1].state_dict())
    same(fast, model, twin, x)
    for m in (model, twin):
        del m.layers[0]
    same(fast, model, twin, x)
    assert_rewritten(fast, 3)
    assert_captured_whole(fast)


def test_a_module_dict_chosen_by_a_string(via, x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({"thin": Chain(out=1), "wide": Chain(out=6)})
            self.extra = nn.ParameterDict({"thin": torch.ones(1), "wide": torch.ones(6)})

        def forward(self, x, head=None):
            if head is not None:
                return self.heads[head](x) * self.extra[head]
            return {name: torch.tanh(each(x)) for name, each in self.heads.items()}

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for head in ("thin", "wide", None, "thin"):
        same(fast, model, twin, x, head=head)
    with pytest.raises(Exception, match="other"):
        fast(x, head="other")
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_lazy_linears(via, x):
    model = nn.Sequential(nn.LazyLinear(12, bias=False), nn.LazyLinear(2, bias=False), nn.Tanh()).double()
    fast = via(model)
    fast(x)
    assert type(model[0]) is nn.Linear and model[0].weight.shape == (12, 12)
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    assert [p.grad for p in model.parameters()] == [None, None]
    assert_rewritten(fast)


def test_lazy_convolutions(via):
    first = nn.LazyConv2d(16, 1, bias=False)
    model = nn.Sequential(first, nn.LazyConv2d(4, 3, padding=1, bias=False), nn.ReLU()).double()
    images = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    fast = via(model)
    with torch.no_grad():
        fast(images)
    assert type(model[0]) is nn.Conv2d
    twin = copy.deepcopy(model)
    same(fast, model, twin, images)
    assert_rewritten(fast)


def test_lazy_modules_and_a_view_made_with_inputs(x):
    model = nn.Sequential(nn.LazyLinear(12, bias=False), nn.LazyLinear(2, bias=False)).double()
    fast = ce_fx.optimize(model, (x,), **OPTIONS)
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)


class LazyChain(nn.modules.lazy.LazyModuleMixin, Chain):
    """A chain whose size is that of its first input."""

    cls_to_become = Chain

    def __init__(self, out=2):
        super().__init__(0, 0)
        self.out = out
        self.a, self.b = nn.UninitializedParameter(), nn.UninitializedParameter()

    def initialize_parameters(self, x):
        if self.has_uninitialized_params():
            with torch.no_grad():
                self.a.materialize((x.shape[-1], x.shape[-1]))
                self.b.materialize((x.shape[-1], self.out))
                self.a.normal_()
                self.b.normal_()


def test_a_lazy_module_inside(via, x):
    model = nn.Sequential(LazyChain(), nn.Tanh()).double()
    fast = via(model)
    fast(x)
    assert type(model[0]) is Chain
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_a_lazy_module_as_the_model(x):
    model = LazyChain().double()
    fast = view(model)
    fast(x)
    twin = Chain().double()
    twin.load_state_dict(model.state_dict())
    same(fast, model, twin, x)
    torch.testing.assert_close(model(x), twin(x))
    assert isinstance(fast, Chain)
    assert_rewritten(fast)


def test_a_lazy_module_as_the_model_stays_a_view(x):
    fast = view(LazyChain().double())
    fast(x)
    twin = copy.deepcopy(fast)
    torch.testing.assert_close(twin(x), fast(x))
    assert "FLOPs" in repr(fast)
    assert ce_fx.report(twin).count("rewritten") == 1
