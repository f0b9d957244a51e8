"""Corners of the view: restoring, models of odd classes, recompiled frames, autocast inside, audit of frozen parts."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import ce_fx
from tests.models import factorized_conv


def chain():
    """Two kernels on one axis each; together they cost more than one after the other."""
    first = nn.Conv2d(32, 32, (3, 1), padding=(1, 0), bias=False)
    return nn.Sequential(first, nn.Conv2d(32, 48, (1, 3), padding=(0, 1), bias=False))


def layer():
    return nn.Sequential(factorized_conv(32, 32), nn.ReLU()).double().eval()


@pytest.fixture
def x():
    return torch.randn(1, 32, 8, 8, dtype=torch.float64)


def decisions(fast):
    return [(row.name, row.decision) for row in ce_fx.report(fast).layers]


def test_a_restored_view_runs_as_written_and_says_so(x):
    model = layer()
    kind = type(model[0].stride)
    fast = ce_fx.optimize(model, (x,), objective="flops")
    assert type(model[0].stride) is not kind
    ce_fx.restore_(fast)
    assert type(model[0].stride) is type(fast[0].stride) is kind
    assert torch.equal(fast(x), model(x))
    assert repr(fast).endswith("\nce_fx: restored, runs as written")
    with pytest.raises(ce_fx.CeFxError, match="was not optimised"):
        ce_fx.graph_modules(fast)
    twin = copy.deepcopy(fast)
    assert type(twin) is nn.Sequential and torch.equal(twin(x), model(x))


def test_restoring_what_was_never_optimised_does_nothing(x):
    model = nn.ReLU()
    before = dict(vars(model))
    ce_fx.restore_(model)
    assert vars(model) == before


@pytest.mark.parametrize("how", ["symbolic_trace", "capture"])
def test_a_graph_module_is_a_model_like_any_other(how, x):
    model = chain().double().eval()
    gm = torch.fx.symbolic_trace(model) if how == "symbolic_trace" else ce_fx.capture(model, (x,))
    fast = ce_fx.optimize(gm, objective="flops")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
        assert len(ce_fx.graph_modules(fast)) == 1
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))) if how == "symbolic_trace" else ():
            assert isinstance(twin, torch.fx.GraphModule) and not ce_fx.graph_modules(twin)
            torch.testing.assert_close(twin(x), model(x))
            assert len(ce_fx.graph_modules(twin)) == 1


def test_a_class_with_its_own_way_of_copying(x):
    class Net(nn.Sequential):
        def __deepcopy__(self, memo):
            twin = Net(*(copy.deepcopy(m, memo) for m in self))
            twin.copied = True
            return twin

    fast = ce_fx.optimize(Net(*layer()), (x,), objective="flops")
    twin = copy.deepcopy(fast)
    assert twin.copied and isinstance(twin, Net)
    torch.testing.assert_close(twin(x), fast(x))
    assert decisions(twin) == [("0", "rewritten")]


def test_views_inside_other_modules_are_copied_and_saved(x):
    outer = nn.ModuleDict({"inner": ce_fx.optimize(layer(), (x,), objective="flops")})
    buffer = io.BytesIO()
    torch.save(outer["inner"], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for twin in (copy.deepcopy(outer)["inner"], saved):
        torch.testing.assert_close(twin(x), outer["inner"](x))
        assert repr(twin).endswith("FLOPs")


def test_a_frame_that_is_compiled_again_is_one_graph(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = factorized_conv(32, 32), factorized_conv(32, 32)
            self.deep = False

        def forward(self, x):
            y = torch.relu(self.first(x))
            return torch.relu(self.second(y)) if self.deep else y

    fast = ce_fx.optimize(Net().double().eval(), (x,), objective="flops")
    assert decisions(fast) == [("first", "rewritten")]
    fast.deep = True
    fast(x)
    assert decisions(fast) == [("first", "rewritten"), ("second", "rewritten")]
    assert len(ce_fx.graph_modules(fast)) == 2
    assert not any("graph break" in note for note in ce_fx.report(fast).notes)


def test_a_graph_break_makes_two_graphs_in_one_report(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = factorized_conv(32, 32), factorized_conv(32, 32)

        def forward(self, x):
            y = self.first(x)
            torch._dynamo.graph_break()
            return self.second(y)

    model = Net().double().eval()
    fast = ce_fx.optimize(model, objective="flops")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    assert decisions(fast) == [("first", "rewritten"), ("second", "rewritten")]
    assert any("captured as 2 graphs" in note for note in ce_fx.report(fast).notes)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        ce_fx.optimize(model, (x,), fullgraph=True)


def test_autocast_inside_a_model_is_seen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.full = factorized_conv(32, 32), factorized_conv(32, 32)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.low(x)
            return y, self.full(x)

    model, x = Net().eval(), torch.randn(1, 32, 8, 8)
    fast = ce_fx.optimize(model, objective="flops")
    with torch.no_grad():
        (low, full), (low_written, full_written) = fast(x), model(x)
    assert low.dtype == low_written.dtype == torch.bfloat16
    torch.testing.assert_close(low, low_written, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(full, full_written)
    assert set(decisions(fast)) == {("low", "rewritten"), ("full", "rewritten")}


def test_an_inner_backend_that_does_not_exist_is_told_at_once():
    with pytest.raises(ce_fx.CeFxError, match="inner must be a backend .* not 'inducto': did you mean 'inductor'"):
        ce_fx.optimize(nn.ReLU(), inner="inducto")
    with pytest.raises(ce_fx.CeFxError, match="the backends are .*inductor"):
        ce_fx.optimize(nn.ReLU(), inner="?")


@pytest.mark.parametrize("train", [None, True, False])
def test_audit_runs_frozen_parts_as_they_are_unless_asked(train):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)).train()
    model[1].eval()
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(module.training))
    report = ce_fx.audit(model, (torch.randn(2, 3, 8, 8),), train=train)
    assert seen == [False]
    assert ("forward + backward" in str(report)) is (train is not False)
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_audit_leaves_a_failing_model_as_it_was():
    model = nn.Sequential(factorized_conv(8, 8), nn.BatchNorm2d(8), nn.Linear(3, 3))
    kind = type(model[0].stride)
    with pytest.raises(RuntimeError):
        ce_fx.audit(model, (torch.randn(2, 8, 5, 5),))
    assert type(model[0].stride) is kind
    assert model[1].num_batches_tracked == 0


def test_two_views_of_one_model_with_options_of_their_own(x):
    model = layer()
    flops = ce_fx.optimize(model, (x,), objective="flops")
    tight = ce_fx.optimize(model, (x,), objective="flops", memory_limit=64)
    assert decisions(flops) == [("0", "rewritten")] and decisions(tight) == [("0", "refused")]
    with torch.no_grad():
        next(model.parameters()).mul_(3)
    for fast in (flops, tight):
        torch.testing.assert_close(fast(x), model(x))


def test_functional_call_and_vmap_reach_the_parameters(x):
    model = layer()
    fast = ce_fx.optimize(model, (x,), objective="flops")
    halves = {name: value / 2 for name, value in model.named_parameters()}
    expected = torch.func.functional_call(model, halves, (x,))
    torch.testing.assert_close(torch.func.functional_call(fast, halves, (x,)), expected)
    torch.testing.assert_close(fast(x), model(x))
    torch.testing.assert_close(torch.func.vmap(fast)(x[None]), model(x)[None])
