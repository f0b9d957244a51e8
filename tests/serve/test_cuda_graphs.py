"""What CUDA graphs need: nothing waits for the device, and folded values stay where they are."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ce_fx
from tests.serve.chains import CHAINS, chain, has_gained, optimised

names = pytest.mark.parametrize("name", CHAINS)
folds = pytest.mark.parametrize("fold", [False, True])


class Watched(TorchDispatchMode):
    """An inner backend: runs a graph as it is and records its ops and where its inputs lie."""

    def __init__(self):
        super().__init__()
        self.ops, self.inputs = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))

    def compile(self, gm, example_inputs):
        def run(*inputs):
            self.inputs.append([value.data_ptr() for value in inputs if isinstance(value, torch.Tensor)])
            with self:
                return gm.forward(*inputs)

        return run


def waits(op):
    """Whether the host has to read a value of the device, or another device."""
    reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
    return bool(reads & set(op.tags)) or op in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def test_the_check_sees_an_item():
    watched = Watched()
    with watched:
        torch.ones(3).sum().item()
    assert any(map(waits, watched.ops))


@names
@folds
@pytest.mark.parametrize("dynamic", [False, True])
def test_nothing_waits_for_a_value(name, fold, dynamic):
    model, x, other = chain(name)
    watched = Watched()
    fast = optimised(model, fold=fold, dynamic=dynamic, inner=watched.compile)
    with torch.no_grad():
        for given in (x, other):
            torch.testing.assert_close(fast(given), model(given), rtol=1e-4, atol=1e-5)
    assert has_gained(fast)
    assert watched.ops
    assert not list(filter(waits, watched.ops))


@names
def test_folds_stay_where_they_are_while_weights_do_not_change(name):
    model, x, _ = chain(name)
    watched = Watched()
    fast = optimised(model, fold=True, inner=watched.compile)
    with torch.no_grad():
        for _ in range(4):
            fast(x)
        first, *later = watched.inputs
        known = {value.data_ptr() for value in (x, *model.parameters())}
        assert set(first) - known  # folded values are inputs of their own
        assert all(places == first for places in later)

        model.b.weight.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        fast(x)
        assert watched.inputs[-1] == watched.inputs[-2]


@pytest.mark.gpu
@names
@folds
def test_a_captured_call_is_replayed(name, fold):
    model, x, _ = chain(name)
    model, x = model.cuda(), x.cuda()
    fast = optimised(model, fold=fold)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                fast(x)
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            result = fast(x)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            recorded.replay()
            torch.testing.assert_close(result, model(x), rtol=1e-3, atol=1e-3)
    assert has_gained(fast)


@pytest.mark.gpu
@names
@folds
def test_inductors_cuda_graphs(name, fold):
    model, x, _ = chain(name)
    model, x = model.cuda(), x.cuda()
    fast = optimised(model, fold=fold, inner="inductor", mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn_like(x)
            torch.testing.assert_close(fast(x).clone(), model(x), rtol=1e-3, atol=1e-3)
        model.b.weight.mul_(2)
        torch.testing.assert_close(fast(x).clone(), model(x), rtol=1e-3, atol=1e-3)
    assert has_gained(fast)


@pytest.mark.gpu
def test_no_call_waits_for_the_device():
    model, x, _ = chain("2d")
    model, x = copy.deepcopy(model).cuda(), x.cuda()
    fast = ce_fx.optimize(model, objective="flops", tune=False, fold=True)
    with torch.no_grad():
        fast(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            fast(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert has_gained(fast)
