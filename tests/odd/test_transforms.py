"""Inference mode, functional calls, vmap, derivatives, inputs that are no tensors."""

import copy

import torch
from torch import nn

from tests.odd.models import Branchless, Chain, Odd, assert_captured_whole, assert_rewritten, same, view


def test_inference_mode_in_float32(via, x):
    model = nn.Sequential(Chain(out=12), nn.Tanh(), Chain())
    twin, fast = copy.deepcopy(model), via(model)
    with torch.inference_mode():
        got, expected = fast(x.float()), twin(x.float())
    assert got.dtype == torch.float32 and got.is_inference() and expected.is_inference()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert_rewritten(fast, 2)
    for m in (model, twin):
        m.double()
    same(fast, model, twin, x)
    with torch.inference_mode():
        inference = x.clone()
        torch.testing.assert_close(fast(inference), twin(inference))
    with torch.no_grad():
        torch.testing.assert_close(fast(inference), twin(inference))


def test_functional_call(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    prefix = "" if via is view else "_orig_mod."
    weights = {name: (value * 2).detach() for name, value in model.named_parameters()}

    def total(run, prefix, weights, x):
        named = {prefix + name: value for name, value in weights.items()}
        return torch.func.functional_call(run, named, (x,)).square().sum()

    same(fast, model, twin, x)
    got = torch.func.grad(total, 2)(fast, prefix, weights, x)
    expected = torch.func.grad(total, 2)(twin, "", weights, x)
    original = torch.func.grad(total, 2)(model, "", weights, x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(original, expected)
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_functional_call_with_some_of_the_weights(x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), view(model)
    weights = {"chain.a": torch.randn(12, 12, dtype=torch.float64)}
    for _ in range(2):
        got, expected = (torch.func.functional_call(m, weights, (x,)) for m in (fast, twin))
        torch.testing.assert_close(got, expected)
        same(fast, model, twin, x)
    assert_rewritten(fast)


def test_vmap_over_a_function_that_calls_the_model(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    batch = torch.stack([x, x + 1, x * 2])

    def called(run):
        return lambda x, scale: run(x * scale) + x.sum()

    scales = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    same(fast, model, twin, batch, call=lambda run, batch: torch.func.vmap(called(run))(batch, scales))
    same(fast, model, twin, x, call=lambda run, x: torch.func.vmap(called(run), (None, 0))(x, scales))
    same(fast, model, twin, x)


def test_an_ensemble_by_vmap_over_weights(x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), view(model)
    weights = {name: torch.stack([value, value * 2]).detach() for name, value in model.named_parameters()}

    def ensemble(m):
        return torch.func.vmap(lambda weights: torch.func.functional_call(m, weights, (x,)))(weights)

    torch.testing.assert_close(ensemble(fast), ensemble(twin))
    same(fast, model, twin, x)


def test_derivatives_per_sample(x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), view(model)
    jacobians = [torch.func.vmap(torch.func.jacrev(lambda row, m=m: m(row[None])[0]))(x[:3]) for m in (fast, twin)]
    torch.testing.assert_close(*jacobians)
    tangent = torch.ones_like(x)
    for got, expected in zip(*(torch.func.jvp(m, (x,), (tangent,)) for m in (fast, twin)), strict=True):
        torch.testing.assert_close(got, expected)


def test_inputs_that_are_no_tensors(via, x):
    class Net(Odd):
        def forward(self, x, mask=None, mode="tanh", repeat=1, shape=(), flags=None):
            for _ in range(repeat):
                x = self.step(x) if mode == "tanh" else self.chain(x) @ self.back.a
            if mask is not None:
                x = x * mask
            if flags and flags.get("deep"):
                x = self.back(x)
            return x.reshape(shape) if shape else x

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    same(fast, model, twin, x, None, "linear", 2)
    same(fast, model, twin, x, None, "linear", 3, (6, 8, 12))
    same(fast, model, twin, x, (x > 0).double(), "tanh", repeat=2, flags={"deep": True})
    same(fast, model, twin, x, mode="other", shape=[24, 24], flags={"deep": False})
    assert_rewritten(fast)
    assert_captured_whole(fast)
