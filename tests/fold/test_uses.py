"""`fold=True` in use: batch sizes, autocast, inference mode, copies, threads, statistics, values that get out."""

import copy
import pickle
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ce_fx
from tests.fold.models import Rebuilt, Standardised, kept, optimize, same


def test_a_batch_of_any_size(net, made):
    fast = optimize(net, dynamic=True)
    for size in (2, 3, 5, 7):
        same(fast, net, torch.randn(size, 4, 6, 6, dtype=torch.float64))
    assert len(made) == 1
    fast = optimize(net)
    for size in (2, 3, 5, 2, 1, 3):
        same(fast, net, torch.randn(size, 4, 6, 6, dtype=torch.float64))


def test_statistics_that_a_training_graph_writes(x):
    """A batch norm's statistics change without a new version, under no_grad as well."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            if self.training:
                return self.norm(x)
            scale = torch.rsqrt(self.norm.running_var + 1e-5) * self.norm.weight
            return F.conv2d(x, (self.weight * scale)[:, :, None, None])

    net = Net().double().eval()
    fast = optimize(net)
    same(fast, net, x)
    assert kept(fast)[0] is not None
    for child in (net, net.norm):
        child.training = True  # no call of `train`
    fast.training = True
    with torch.no_grad():
        fast(x * 3)
    net.training = net.norm.training = fast.training = False
    same(fast, net, x)


def test_a_value_that_is_handed_out_may_be_written_to(net):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            dense = self.weight.exp()
            return x @ dense, dense.t()

    net, x = Net(), torch.randn(2, 4)
    fast = optimize(net)
    with torch.no_grad():
        fast(x)[1].zero_()
    with torch.no_grad():
        for a, b in zip(fast(x), net(x), strict=True):
            torch.testing.assert_close(a, b)


def test_random_steps_are_drawn_anew(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return torch.einsum("bshw,st->bthw", x, F.dropout(self.weight.exp(), 0.5, True))

    fast = optimize(Net().double())
    with torch.no_grad():
        assert not torch.equal(fast(x), fast(x))


def test_autocast(x):
    net = Rebuilt().eval()
    fast = optimize(net)
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            result, expected = fast(x.float()), net(x.float())
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result, expected, rtol=1e-2 if enabled else 1e-5, atol=0.2 if enabled else 1e-4)


def test_weights_made_in_inference_mode_are_not_kept(x, made):
    with torch.inference_mode():
        net = Standardised().double().eval()
        fast = optimize(net)
        for _ in range(2):
            torch.testing.assert_close(fast(x), net(x))
            net.weight.mul_(-1)
    assert len(made) == 2 and kept(fast) == [None]


def test_values_made_in_inference_mode_serve_elsewhere(net, x, made):
    fast = optimize(net)
    with torch.inference_mode():
        fast(x)
    same(fast, net, x)
    assert not any(value.is_inference() for entry in kept(fast) if entry for value in entry.values)


def test_copies_start_empty(net, x):
    fast = optimize(net)
    same(fast, net, x)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert twin._ce_fx_session.options.fold and twin._ce_fx_session.compiled == []
        with torch.no_grad():
            twin.weight.mul_(-1)
        assert not torch.equal(twin.weight, net.weight)
        plain = Standardised().double()
        plain.load_state_dict(twin.state_dict())
        same(twin, plain, x)
        same(fast, net, x)


def test_in_place_twin(net, x, made):
    reference = copy.deepcopy(net)
    ce_fx.optimize_(net, fold=True)
    same(net, reference, x)
    for model in (net, reference):
        model.weight.data.neg_()
    ce_fx.refresh(net)
    same(net, reference, x)
    assert len(made) == 2
    ce_fx.restore_(net)
    with pytest.raises(ce_fx.CeFxError, match="Standardised was not optimised"):
        ce_fx.refresh(net)


def test_threads(net, x):
    fast = optimize(net)
    same(fast, net, x)
    with torch.no_grad():
        expected = net(x)
    wrong = []

    def serve():
        for _ in range(50):
            with torch.no_grad():
                if not torch.allclose(fast(x), expected):
                    wrong.append(1)

    workers = [threading.Thread(target=serve) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(20):
        ce_fx.refresh(fast)
    for worker in workers:
        worker.join()
    assert not wrong


def test_the_pure_pass_leaves_weight_only_steps(net, x):
    gm = torch.fx.symbolic_trace(net)
    out = ce_fx.rewrite(gm, (x,), fold=True)
    assert [n.name for n in out.graph.find_nodes(op="placeholder")] == ["x"]
    torch.testing.assert_close(out(x), net(x))


def test_refresh_takes_optimised_models_only(net):
    with pytest.raises(ce_fx.CeFxError, match=r"call ce_fx.optimize\(model\) first"):
        ce_fx.refresh(net)
    with pytest.raises(ce_fx.CeFxError, match="function was not optimised"):
        ce_fx.refresh(lambda x: x)
    ce_fx.refresh(ce_fx.optimize(net))  # without fold there is nothing to do


class OneByOne(nn.Module):
    """A 1x1 convolution of one image, which a matmul could do, and a batch norm behind if so told."""

    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(64, 96, 1)
        self.norm = nn.BatchNorm2d(96) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    ("norm", "says"), [(True, "rewritten: .* less time predicted"), (False, "kept: one contraction")]
)
def test_a_convolution_stays_one(norm, says):
    """What is folded around it is chosen by prediction alone, and no reason to evaluate it in another way."""
    model, x = OneByOne(norm).eval(), torch.randn(1, 64, 40, 40)
    with torch.no_grad():
        fast = ce_fx.optimize(model, (x,), fold=True, tune=False)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    (layer,) = ce_fx.report(fast).layers
    assert re.match(says, f"{layer.decision}: {layer.reason}")
    (gm,) = ce_fx.graph_modules(fast)
    calls = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    assert torch.conv2d in calls
    assert not {torch.mm, torch.bmm, torch.matmul} & set(calls)
