"""The view: same class, same parameters, same results, whatever the user does to the model."""

import copy
import importlib
import pickle
import re
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ce_fx
from ce_fx.session import Session
from ce_fx.tune import candidates, choice
from tests.models import factorized_conv, factorized_resnet18, plain_resnet18


class Net(nn.Module):
    """Two factorised convolutions, a batch norm, a Python flag."""

    def __init__(self, channels=32):
        super().__init__()
        self.first = factorized_conv(channels, channels)
        self.norm = nn.BatchNorm2d(channels)
        self.second = factorized_conv(channels, channels, bias=True)
        self.flag = False
        self.scale = 1.0

    def forward(self, x, *, shift=None):
        y = torch.relu(self.norm(self.first(x)))
        y = self.second(y) * self.scale
        if self.flag:
            y = y + 1
        return y if shift is None else y + shift

    def describe(self):
        return f"net of {self.first.in_channels}"


@pytest.fixture
def net():
    return Net().double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 32, 8, 8, dtype=torch.float64)


def same(fast, model, *args, **kwargs):
    torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs))


def optimize(model, *args, **options):
    return ce_fx.optimize(model, *args, objective="flops", **options)


def rewritten(fast):
    return ce_fx.report(fast).count("rewritten")


def test_same_object_in_all_that_matters(net, x):
    fast = optimize(net)
    assert isinstance(fast, Net) and type(fast).__name__ == "Net"
    assert fast.describe() == "net of 32"
    assert list(fast.state_dict()) == list(net.state_dict())
    assert all(a is b for a, b in zip(fast.parameters(), net.parameters(), strict=True))
    assert all(a is b for a, b in zip(fast.buffers(), net.buffers(), strict=True))
    assert repr(fast).endswith("ce_fx: not captured yet")
    with torch.no_grad():
        same(fast, net, x)
    assert rewritten(fast) == 2
    assert re.search(r"\nce_fx: 2 of 2 layers rewritten, \d+\.\dx fewer FLOPs$", repr(fast))
    same(fast, net, x, shift=torch.ones(32, 8, 8, dtype=torch.float64))


def test_rewritten_graph_prints_and_holds_torch_calls_only(net, x):
    """An inner compiler finds a value at each node; they are not kept once it is done."""
    valued = []

    def inner(gm, inputs):
        valued.extend(node.name for node in gm.graph.nodes if "example_value" in node.meta)
        return gm.forward

    fast = optimize(net, (x,), inner=inner)
    (gm,) = ce_fx.graph_modules(fast)
    targets = {node.target for node in gm.graph.nodes if node.op == "call_function"}
    assert all(getattr(t, "__module__", "torch").partition(".")[0] in ("torch", "_operator") for t in targets)
    assert "ce_fx" not in gm.code
    new = [n for n in gm.graph.nodes if n.target is torch.conv2d]
    assert new and all("nn_module_stack" in n.meta and n.name in valued for n in new)
    assert {n for n in new if "example_value" in n.meta} <= {*gm.graph.output_node().all_input_nodes}


def test_gradients_and_an_optimiser_made_before(x):
    model, twin = Net().double(), Net().double()
    twin.load_state_dict(model.state_dict())
    optimiser = torch.optim.SGD(model.parameters(), 0.001)
    reference = torch.optim.SGD(twin.parameters(), 0.001)
    fast = optimize(model)
    for _ in range(3):
        for m, o in ((fast, optimiser), (twin, reference)):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
    assert rewritten(fast) == 2
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_flags_modes_and_parameters_are_followed(net, x):
    fast = optimize(net, (x,))
    fast.flag = net.flag = True
    same(fast, net, x)
    fast.scale = net.scale = 2.5
    same(fast, net, x)
    net.norm.train()
    twin = copy.deepcopy(net)
    torch.testing.assert_close(fast(x), twin(x))
    torch.testing.assert_close(net.norm.running_mean, twin.norm.running_mean)
    net.norm.eval()
    net.second.bias = nn.Parameter(torch.randn(32, dtype=torch.float64))
    same(fast, net, x)
    net.load_state_dict({k: v.clone() * 1.5 for k, v in net.state_dict().items()}, assign=True)
    same(fast, net, x)
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    same(fast, net, x)
    net.first = factorized_conv(32, 32).double()
    same(fast, net, x)
    fast.train()
    assert fast.training and net.norm.training and not net.training


def test_to_moves_both(net, x):
    fast = optimize(net, (x,))
    fast.float()
    same(fast, net, x.float())
    assert fast(x.float()).dtype == torch.float32


def test_hooks_run(net, x):
    seen = []
    net.first.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    fast = optimize(net)
    same(fast, net, x)
    assert len(seen) == 2


def test_shapes_may_change(net, x):
    fast = optimize(net, (x,))
    for shape in ((3, 32, 8, 8), (5, 32, 8, 8), (1, 32, 8, 8), (2, 32, 10, 6)):
        same(fast, net, torch.randn(shape, dtype=torch.float64))


def test_channels_last_in_and_out(net, x):
    net = net.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    fast = optimize(net, (x,))
    with torch.no_grad():
        got, expected = fast(x), net(x)
    torch.testing.assert_close(got, expected)
    assert got.stride() == expected.stride()


def test_copies_are_captured_anew(net, x):
    fast = optimize(net, (x,))
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert isinstance(twin, Net)
        assert not ce_fx.graph_modules(twin)
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert not torch.equal(twin(x), fast(x))
        assert rewritten(twin) == 2
        assert repr(twin).endswith("FLOPs")


def test_warming_up_leaves_no_trace(x):
    model = nn.Sequential(Net(), nn.Dropout(0.5)).double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    fast = optimize(model, (x,))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert rewritten(fast) == 2


def test_numpy_attributes_become_plain_and_come_back(x):
    model = Net().double()
    kind = type(model.first.stride)
    assert kind.__module__ == "numpy"
    ce_fx.optimize_(model, (x,), objective="flops")
    assert type(model.first.stride) is not kind and model.first.stride.tolist() == [1, 1]
    assert len(ce_fx.graph_modules(model)) == 1
    assert any("NumPy values of attributes" in note for note in ce_fx.report(model).notes)
    ce_fx.restore_(model)
    assert type(model.first.stride) is kind
    with pytest.raises(ce_fx.CeFxError, match="was not optimised"):
        ce_fx.report(model)


def test_in_place_twin_keeps_the_object(net, x):
    expected = net(x)
    assert ce_fx.optimize_(net, objective="flops") is None
    torch.testing.assert_close(net(x), expected)
    assert rewritten(net) == 2
    ce_fx.restore_(net)
    torch.testing.assert_close(net(x), expected)


def test_many_models_do_not_share_a_recompile_limit(x):
    for n in range(10):
        model = nn.Sequential(factorized_conv(48 + n, 48)).eval()
        fast = optimize(model)
        with torch.no_grad():
            same(fast, model, torch.randn(1, 48 + n, 6, 6))
        assert rewritten(fast) == 1, n


def test_nothing_to_do_hands_the_graph_on_untouched():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    seen = []

    def inner(gm, inputs):
        seen.append(gm.code)
        return gm.forward

    torch.compile(model, backend=inner)(x)
    torch._dynamo.reset()
    fast = ce_fx.optimize(model, inner=inner)
    same(fast, model, x)
    assert seen[0].replace("self_", "") == seen[1].replace("model_", "") or _same_ops(seen[0], seen[1])
    assert repr(fast).endswith("ce_fx: nothing to rewrite: one convolution")


def _same_ops(a, b):
    """The same calls in the same order; names come from where the module was found."""
    calls = [re.findall(r"torch\.[\w.]+\(", code) for code in (a, b)]
    return calls[0] == calls[1]


def test_verification_takes_a_wrong_rewrite_back(net, x, monkeypatch):
    """A planted bug in lowering: the written graph stays, a warning says so, the report counts it."""
    candidate = candidates.candidate

    def wrong(*args):
        module = candidate(*args)
        output = next(node for node in module.graph.nodes if node.op == "output")
        with module.graph.inserting_before(output):
            output.args = (module.graph.call_function(torch.mul, (output.args[0], 1.001)),)
        module.recompile()
        return module

    monkeypatch.setattr(candidates, "candidate", wrong)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = optimize(net)
        same(fast, net, x)
    assert any("planned wrongly" in str(w.message) for w in caught)
    assert ce_fx.report(fast).mismatches == 2
    assert rewritten(fast) == 0


def test_a_failing_pass_runs_the_model_as_written(net, x, monkeypatch, caplog):
    def broken(region, context):
        raise ArithmeticError("planted")

    monkeypatch.setattr(sys.modules["ce_fx.rewrite"], "decide", broken)
    fast = optimize(net)
    same(fast, net, x)
    assert "ArithmeticError" in caplog.text
    assert ce_fx.report(fast).layers[0].decision == "refused"


def test_options_are_checked_at_once(net):
    with pytest.raises(ce_fx.CeFxError, match="unknown option 'objectiv': did you mean 'objective'"):
        ce_fx.optimize(net, objectiv="flops")
    with pytest.raises(ce_fx.CeFxError, match="objective must be 'time', 'flops' or 'memory', not 'speed'"):
        ce_fx.optimize(net, objective="speed")
    with pytest.raises(ce_fx.CeFxError, match=r"optimize takes a torch.nn.Module, not function"):
        ce_fx.optimize(lambda x: x)
    with pytest.raises(ce_fx.CeFxError, match="an optimised view already"):
        ce_fx.optimize(ce_fx.optimize(net))


def test_memory_limit_is_honoured_or_the_region_runs_as_written(net, x):
    fast = ce_fx.optimize(net, (x,), objective="flops", memory_limit=64)
    same(fast, net, x)
    layer = ce_fx.report(fast).layers[0]
    assert layer.decision == "refused"
    assert "keeps every intermediate within" in layer.reason


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_the_registered_backend(net, x, inner):
    compiled = torch.compile(net, backend="ce_fx", options={"inner": inner, "objective": "flops"})
    torch.testing.assert_close(compiled(x), net(x))
    with pytest.raises(Exception, match="unknown option 'iner'"):
        torch.compile(net, backend="ce_fx", options={"iner": "eager"})(x)


@pytest.mark.slow
def test_inductor_inside(net, x):
    fast = optimize(net, inner="inductor")
    with torch.no_grad():
        same(fast, net, x)
    assert rewritten(fast) == 2


def test_a_session_copies_empty():
    from ce_fx.options import Options

    session = Session(Options(objective="flops"), "Net")
    session.compiled.append((None, ()))
    twin = copy.deepcopy(session)
    assert (twin.options, twin.title, twin.compiled) == (session.options, "Net", [])


@pytest.mark.slow
@pytest.mark.parametrize("factorization", ["tt", "cp", "tucker"])
@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
def test_tensorly_torch_resnet18(factorization, implementation):
    """One graph, the same values and gradients, every 3x3 convolution seen."""
    model = factorized_resnet18(factorization, 0.25, implementation, num_classes=10, width=16).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    fast = optimize(model)
    for train in (False, True):
        model.train(train)
        fast.train(train)
        twin = copy.deepcopy(model)
        got, expected = fast(x), twin(x)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        got.square().sum().backward()
        expected.square().sum().backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-7)
        model.zero_grad()
    report = ce_fx.report(fast)
    assert len([layer for layer in report.layers if layer.kind == "FactorizedConv"]) == 16
    assert report.mismatches == 0


def test_plain_resnet18_has_nothing_to_do():
    model = plain_resnet18(num_classes=10, width=8).eval()
    fast = ce_fx.optimize(model, (torch.randn(1, 3, 32, 32),))
    assert {layer.decision for layer in ce_fx.report(fast).layers} == {"kept"}
    assert "nothing to rewrite" in repr(fast)


def test_sizes_of_one_model_do_not_become_symbolic_because_of_another():
    """Dynamo remembers varying sizes by the name of the code; two models of one class must not share it."""
    for size in (8, 9):
        fast = optimize(Net().double().eval())
        fast(torch.randn(2, 32, size, size, dtype=torch.float64))
        assert rewritten(fast) == 2


def test_a_symbolic_batch_is_rewritten_too(net):
    fast = optimize(net)
    with torch.no_grad():
        for batch in (2, 3, 5, 7):
            same(fast, net, torch.randn(batch, 32, 8, 8, dtype=torch.float64))
    assert len(ce_fx.graph_modules(fast)) == 2  # one for the first size, one for any
    assert rewritten(fast) == 2


def test_a_graph_that_gains_too_little_is_handed_on_untouched(net, x, monkeypatch):
    """Every region would gain, the whole too little: the graph is the same, node by node, and the rows say why."""
    rewrite = sys.modules["ce_fx.rewrite"]
    monkeypatch.setattr(choice, "MARGIN", {"time": float("inf")})  # whatever the prediction, every region is rewritten
    monkeypatch.setattr(rewrite, "LEAST_GAIN", float("-inf"))
    plain = ce_fx.optimize(net)
    same(plain, net, x)
    assert rewritten(plain) == 2
    monkeypatch.setattr(rewrite, "LEAST_GAIN", 1.0)
    torch._dynamo.reset()
    fast = ce_fx.optimize(net)
    same(fast, net, x)
    report = ce_fx.report(fast)
    assert rewritten(fast) == 0 and report.flops_after == report.flops_before
    reasons = [layer.reason for layer in report.layers if "whole graph would gain" in layer.reason]
    assert len(reasons) == rewritten(plain) and all("%" in reason for reason in reasons)


def test_other_objectives_have_no_least_gain(net, x, monkeypatch):
    monkeypatch.setattr(sys.modules["ce_fx.rewrite"], "LEAST_GAIN", 1.0)
    fast = optimize(net)
    same(fast, net, x)
    assert rewritten(fast) == 2


def test_a_replacement_that_fails_leaves_the_graph_as_it_was(net, x, monkeypatch):
    """Half of the regions are in place when something goes wrong."""
    rewrite = sys.modules["ce_fx.rewrite"]
    inline, calls = rewrite.inline, []

    def second_fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise ArithmeticError("planted")
        return inline(*args)

    monkeypatch.setattr(rewrite, "inline", second_fails)
    fast = optimize(net)
    same(fast, net, x)
    assert len(calls) == 2 and rewritten(fast) == 0
    assert "planted" in ce_fx.report(fast).layers[0].reason


@pytest.mark.parametrize("suppress", [False, True])
@pytest.mark.parametrize(
    "stage", ["rewrite.read", "rewrite.weight_only", "rewrite.find_regions", "rewrite._worthwhile", "rewrite._replace"]
)
def test_no_failure_of_ours_reaches_dynamo(net, x, stage, suppress, monkeypatch):
    """Under `suppress_errors` it would hide there, and the report would not know."""
    fails(monkeypatch, stage)
    fast = optimize(net)
    with torch._dynamo.config.patch(suppress_errors=suppress):
        same(fast, net, x)
    assert len(ce_fx.graph_modules(fast)) == 1
    (layer,) = ce_fx.report(fast).layers
    assert layer.decision == "refused" and "planted" in layer.reason


def fails(monkeypatch, stage):
    """A function of the package, by module and name, raises when it is called."""

    def broken(*args, **kwargs):
        raise ArithmeticError("planted")

    module, _, name = stage.partition(".")
    monkeypatch.setattr(importlib.import_module(f"ce_fx.{module}"), name, broken)


def test_a_graph_that_cannot_be_copied_runs_as_written(net, x, monkeypatch):
    """There would be no way back from an inner compiler's failure."""
    fails(monkeypatch, "handing_on.copy_of")
    fast = optimize(net, inner="aot_eager")
    same(fast, net, x)
    (layer,) = ce_fx.report(fast).layers
    assert layer.decision == "refused" and "planted" in layer.reason


@pytest.mark.parametrize("stage", ["handing_on.Trace", "traces._folder", "traces.trace_structured", "traces.Report"])
def test_a_failure_to_trace_is_no_failure_to_rewrite(net, x, stage, monkeypatch, caplog):
    fails(monkeypatch, stage)
    fast = optimize(net)
    same(fast, net, x)
    assert rewritten(fast) == 2
    assert "a graph is not traced: ArithmeticError: planted" in caplog.text


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_flop_counter_leaves_a_model_as_it_was(net, x, when):
    """A frame that Dynamo meets under such a mode it skips from then on."""
    runs = []
    fast = optimize(net, inner=lambda gm, inputs: lambda *args: runs.append(1) or gm.forward(*args))
    with torch.no_grad():
        expected = net(x)
        if when == "later":
            fast(x)
        with FlopCounterMode(display=False) as counter:
            torch.testing.assert_close(fast(x), expected)
        assert counter.get_total_flops() > 0
        runs.clear()
        torch.testing.assert_close(fast(x), expected)
    assert runs and rewritten(fast) == 2


def test_a_forced_eager_stance_runs_a_view_as_written(net, x):
    runs = []
    fast = optimize(net, inner=lambda gm, inputs: lambda *args: runs.append(1) or gm.forward(*args))
    same(fast, net, x)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(fast(x), net(x))
    assert len(runs) == 1 and rewritten(fast) == 2


def test_an_interrupted_plan_keeps_what_is_planned(net, x, monkeypatch):
    rewrite = sys.modules["ce_fx.rewrite"]
    decide, calls = rewrite.decide, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decide(*args)

    monkeypatch.setattr(rewrite, "decide", interrupted)
    fast = optimize(net)
    with pytest.warns(UserWarning, match="Ctrl-C"):
        fast(x)
    same(fast, net, x)
    assert rewritten(fast) == 1 and torch.is_grad_enabled()
    assert "planning was stopped by Ctrl-C" in ce_fx.report(fast).layers[1].reason


def test_a_report_that_fails_costs_no_rewrite(net, x, monkeypatch, caplog):
    def fails(*args):
        raise ArithmeticError("no such sum")

    monkeypatch.setattr(sys.modules["ce_fx.rewrite"], "graph_report", fails)
    fast = optimize(net)
    same(fast, net, x)
    assert rewritten(fast) == 2
    assert "the report of a graph is not whole: ArithmeticError: no such sum" in caplog.text
    assert ce_fx.report(fast).flops_after < ce_fx.report(fast).flops_before


def test_a_model_without_a_multilinear_layer_says_so():
    fast = ce_fx.optimize(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()), (torch.randn(2, 3),))
    assert repr(fast).endswith("ce_fx: nothing to rewrite: no multilinear layer was found")
    assert ce_fx.report(fast).layers == ()
