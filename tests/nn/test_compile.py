import subprocess
import sys

import pytest
import torch

import ce_fx
from ce_fx.nn import FORMS, ConvEinsum

OTHERS = [form for form in FORMS if form not in ("cp", "rtt")]


class Net(torch.nn.Module):
    def __init__(self, form="rtt", dtype=torch.float64):
        super().__init__()
        self.first = ConvEinsum.of_form(form, 8, 12, (3, 3), rate=0.3, padding=1, dtype=dtype)
        self.second = ConvEinsum.of_form(form, 12, 12, (3, 3), rate=0.3, stride=2, groups=2, dtype=dtype)
        self.last = ConvEinsum.of_form(form, 12, 5, rank=2, dtype=dtype)

    def forward(self, x):
        x = self.second(torch.relu(self.first(x)))
        return self.last(torch.relu(x).mean((2, 3)))


def images(batch=3, size=8):
    return torch.randn(batch, 8, size, size, dtype=torch.float64)


def both(model, other, x):
    """Outputs and gradients of a model and of another call of it."""
    results = []
    for run in (model, other):
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append((y.detach(), [p.grad.clone() for p in model.parameters()]))
    return results


@pytest.mark.parametrize("form", ["cp", "rtt", *(pytest.param(f, marks=pytest.mark.slow) for f in OTHERS)])
def test_optimize_gives_the_same_values_and_gradients(form):
    layer = ConvEinsum.of_form(form, 8, 12, (3, 3), rank=2, padding=1, dtype=torch.float64)
    plain, fast = both(layer, ce_fx.optimize(layer), images())
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_optimize_of_a_network():
    model = Net()
    plain, fast = both(model, ce_fx.optimize(model), images())
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_optimize_lifts_whole_layers():
    model = Net("cp")
    model.first = ConvEinsum.of_form("cp", 8, 64, (3, 3), rank=2, padding=1, dtype=torch.float64)
    model.second = ConvEinsum.of_form("cp", 64, 12, (3, 3), rank=2, dtype=torch.float64)
    fast = ce_fx.optimize(model, (images(16, 32),), objective="flops")
    report = ce_fx.report(fast)
    rewritten = {layer.name: layer.expression for layer in report.layers if layer.decision == "rewritten"}
    assert set(rewritten) >= {"first", "second"}, str(report)
    assert rewritten["first"].count(",") == 4
    assert report.flops_after * 3 < report.flops_before


@pytest.mark.parametrize(
    ("backend", "graphs"),
    [
        ("eager", 1),
        ("aot_eager", 1),
        pytest.param("ce_fx", 2, marks=pytest.mark.slow),
    ],  # one where another order is better
)
def test_compile_makes_one_graph_for_any_batch(backend, graphs):
    model = Net()
    options = {"options": {"inner": "eager"}} if backend == "ce_fx" else {}
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True, **options)
    torch._dynamo.utils.counters.clear()
    for batch, size in [(3, 10), (5, 9), (17, 13), (2, 7), (4, 30)]:
        plain, fast = both(model, compiled, images(batch, size))
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs


def test_optimize_does_not_capture_every_batch_anew():
    """One graph for the first call's sizes and one for others, as Dynamo does; a third where a plan no longer fits."""
    model = ConvEinsum.of_form("tt", 8, 12, (3, 3), rank=2, padding=1, dtype=torch.float64)
    fast = ce_fx.optimize(model)
    torch._dynamo.utils.counters.clear()
    for batch in (3, 5, 17, 2, 40, 7, 9, 11, 13, 15):
        x = images(batch)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


@pytest.mark.slow
def test_inductor():
    model = Net().float()
    compiled = torch.compile(model, fullgraph=True)
    plain, fast = both(model, compiled, images().float())
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_export_and_autocast():
    model = Net().float()
    x = images().float()
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(x[:2]), model(x[:2]), rtol=1e-4, atol=1e-4)
    fast = ce_fx.optimize(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), model(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("form", ["rtt", "interleaved"])
def test_symbolic_traces_can_be_rewritten(form):
    model = torch.nn.Sequential(
        ConvEinsum.of_form(form, 8, 12, (3, 3), rate=0.9, padding=1, padding_mode="circular", dtype=torch.float64),
        ConvEinsum.of_form(form, 12, 12, (3, 3), rate=0.9, groups=2, dtype=torch.float64),
    )
    traced = torch.fx.symbolic_trace(model)
    x = images()
    torch.testing.assert_close(traced(x), model(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ce_fx.rewrite(traced, (x,))(x), model(x), rtol=1e-9, atol=1e-9)
    model[0].factors[0].data.zero_()  # the graph holds the parameters, not what they were
    torch.testing.assert_close(traced(x), model(x), rtol=1e-10, atol=1e-10)


def test_composed_kernels_compile():
    layer = ConvEinsum("bshw,rt,rsh,rh,rw->bthw|hw", (4, 6), (4, 5, 3), (4, 2), (4, 2), dtype=torch.float64)
    x = torch.randn(2, 5, 8, 9, dtype=torch.float64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 5, 8 + batch, 9, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-10, atol=1e-10)


def test_nn_waits_until_it_is_asked_for():
    code = "import sys, ce_fx; print('ce_fx.nn' in sys.modules); ce_fx.nn.ConvEinsum; print('tensorly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
