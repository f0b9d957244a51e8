"""`torch.compile(model, backend="ce_fx")`: found by name, cached, and what Inductor sees is what it sees without."""

import importlib

import pytest
import torch
from torch._inductor import list_mode_options
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch.utils.checkpoint import checkpoint

import ce_fx
from tests.backend_rows import rewritten_by_the_backend
from tests.compile.net import Net, gradients, in_process

PLAN = {"objective": "flops", "tune": False}


@pytest.mark.slow
def test_a_process_that_never_imports_it_and_a_second_one_that_finds_the_graph(tmp_path):
    call = 'backend="ce_fx", options={"objective": "flops", "tune": False}'
    setup = """
import io, logging
said = io.StringIO()
logging.getLogger("ce_fx").addHandler(logging.StreamHandler(said))
logging.getLogger("ce_fx").setLevel("INFO")
"""
    runs = [in_process(tmp_path, call, setup, '"said": said.getvalue()') for _ in range(2)]
    assert max(run["error"] for run in runs) < 1e-5
    assert ["1 of 1 layers rewritten" in run["said"] for run in runs] == [True, True], runs
    compiled, found = (run["counters"] for run in runs)
    assert (
        compiled["inductor"]["fxgraph_cache_miss"] == found["inductor"]["fxgraph_cache_hit"] == 2
    )  # with the backward
    assert compiled["aot_autograd"]["autograd_cache_saved"] == found["aot_autograd"]["autograd_cache_hit"] == 1
    assert "fxgraph_cache_miss" not in found["inductor"]


@pytest.mark.parametrize("training", [False, True])
def test_inductor_has_the_same_static_inputs(training):
    """Without them it would copy all weights for every replay of a CUDA graph."""
    found = {}

    def inner(name):
        def compiler(gm, inputs):
            def spy(graph, examples, **kwargs):
                found.setdefault(name, []).append(list(kwargs.get("static_input_idxs", ())))
                return compile_fx_inner(graph, examples, **kwargs)

            return compile_fx(gm, inputs, inner_compile=spy)

        return compiler

    net, x = Net(), torch.randn(40, 24)
    with torch.set_grad_enabled(training):
        for name, backend in (
            ("stock", inner("stock")),
            ("ce_fx", lambda gm, inputs: lookup()(gm, inputs, options={**PLAN, "inner": inner("ce_fx")})),
        ):
            torch._dynamo.reset()
            with rewritten_by_the_backend(least=name == "ce_fx"):
                y = torch.compile(net, backend=backend)(x)
            if training:
                y.sum().backward()
    assert found["stock"] == found["ce_fx"]
    assert len(found["stock"][0]) == len(list(net.parameters()))


def lookup():
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend("ce_fx")


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_the_body_of_a_checkpoint_is_visited(inner):
    net, x = Net().double(), torch.randn(40, 24, dtype=torch.float64)

    def run(x):
        return checkpoint(net, x, use_reentrant=False)

    bodies = []

    def backend(gm, inputs):
        compiled = lookup()(gm, inputs, options={**PLAN, "inner": inner})
        bodies.extend(str(body.graph) for name, body in gm.named_children() if "wrap_body" in name)
        return compiled

    torch.testing.assert_close(gradients(net, torch.compile(run, backend=backend), x), gradients(net, run, x))
    assert len(bodies) == 1
    assert "mm" in bodies[0]


class Outer(torch.nn.Module):
    """A checkpoint, and a write to a slice behind it if so told."""

    def __init__(self, writes=False):
        super().__init__()
        self.net = Net()
        self.writes = writes

    def forward(self, x):
        y = checkpoint(self.net, x, use_reentrant=False) * 2
        if self.writes:
            y[:, :1] = x[:, :1]
        return y


@pytest.mark.parametrize("writes", [False, True])
def test_the_report_names_what_is_in_a_checkpoint(writes):
    model, x = Outer(writes).double(), torch.randn(40, 24, dtype=torch.float64)
    fast = ce_fx.optimize(model, **PLAN)
    torch.testing.assert_close(gradients(model, fast, x), gradients(model, model, x))
    (gm,) = ce_fx.graph_modules(fast)
    assert "mm" in str(gm.wrap_body_0.graph)
    (layer,) = [layer for layer in ce_fx.report(fast).layers if layer.decision == "rewritten"]
    assert layer.name.startswith("net")
    assert layer.flops_after < layer.flops_before


def test_nothing_is_folded_in_a_checkpoint():
    """Its body runs in every call, with the work on weights in it, and is planned so."""
    model, x = Outer().eval(), torch.randn(40, 24)
    with torch.no_grad():
        flops = [ce_fx.report(ce_fx.optimize(model, (x,), fold=fold, **PLAN)).flops_after for fold in (False, True)]
    assert flops[0] == flops[1]


def test_a_body_that_is_called_twice_is_left_alone():
    """What is planned for the sizes of one call may not hold for those of the other."""
    model, x = Outer().double(), torch.randn(40, 24, dtype=torch.float64)
    seen = []

    def backend(gm, inputs):
        (call,) = gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.tag_activation_checkpoint)
        with gm.graph.inserting_after(call):
            again = gm.graph.node_copy(call)
        gm.graph.lint()
        before = str(gm.wrap_body_0.graph)
        run = lookup()(gm, inputs, options={**PLAN, "inner": "eager"})
        seen.append((again.target, str(gm.wrap_body_0.graph) == before))
        return run

    torch.compile(model, backend=backend)(x)
    assert [same for _, same in seen] == [True]


def test_a_mode_and_inner_options_reach_an_inner_backend():
    seen = []

    def inner(gm, inputs, **kwargs):
        seen.append(kwargs)
        return gm.forward

    given = {**PLAN, "inner": inner, "inner_options": {"depth": 1}, "mode": "any"}
    torch.compile(Net(), backend="ce_fx", options=given)(torch.randn(40, 24))
    assert seen == [{"options": {"depth": 1}, "mode": "any"}]


@pytest.mark.parametrize("door", ["backend", "optimize"])
def test_a_mode_and_inner_options_reach_inductor(door, monkeypatch):
    seen, mode = [], "max-autotune-no-cudagraphs"

    def spy(gm, inputs, **kwargs):
        seen.append(kwargs)
        return gm.forward

    monkeypatch.setattr(importlib.import_module("torch._inductor.compile_fx"), "compile_fx", spy)
    patches = dict(list_mode_options(mode))
    if door == "backend":
        run = torch.compile(Net(), backend="ce_fx", mode=mode)
    else:
        run = ce_fx.optimize(Net(), inner="inductor", mode=mode, inner_options={"max_autotune": False}, tune=False)
        patches["max_autotune"] = False  # what is said in particular wins
    run(torch.randn(40, 24))
    assert seen == [{"config_patches": patches}]


def test_a_mode_that_inductor_does_not_have_is_told_at_once():
    with pytest.raises(ce_fx.CeFxError, match="mode must be one of Inductor's, .* did you mean 'max-autotune'"):
        ce_fx.optimize(Net(), inner="inductor", mode="max-autotun")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"options": {"inner": "aot_eage"}}, "inner must be a backend .* did you mean 'aot_eager'"),
        ({"options": {"mode": "max-autotun"}}, "mode must be one of Inductor's, .* did you mean 'max-autotune'"),
        ({"mode": "max-autotun"}, "mode must be one of Inductor's, .* did you mean 'max-autotune'"),
        ({"options": {"objektive": "time"}}, "unknown option 'objektive': did you mean 'objective'"),
        (
            {"options": {"dynamic": True}},
            r"dynamic is no option of backend .ce_fx.: .* torch.compile\(model, dynamic=",
        ),
        ({"options": {"fullgraph": True}}, r"fullgraph is no option of .* torch.compile\(model, fullgraph="),
    ],
)
def test_a_bad_option_of_the_backend_is_told_before_anything_is_planned(given, says, monkeypatch):
    planned = []
    monkeypatch.setattr("ce_fx.handing_on.rewritten_or_untouched", lambda *args, **kwargs: planned.append(args))
    with pytest.raises(Exception, match=says):
        torch.compile(Net(), backend="ce_fx", **given)(torch.randn(40, 24))
    assert not planned


def test_options_that_are_changed_later_change_nothing():
    seen = []

    def inner(gm, inputs, options):
        seen.append((gm.code, options))
        return gm.forward

    given = {**PLAN, "inner": inner, "inner_options": {"depth": 1}}
    compiled = torch.compile(Net(), backend="ce_fx", options=given, dynamic=False)
    compiled(torch.randn(40, 24))
    given["inner_options"]["depth"] = 2
    given.update(objective="memory", inner="no such backend")
    compiled(torch.randn(50, 24))
    assert [options for _, options in seen] == [{"depth": 1}] * 2 and "linear(" not in seen[1][0]


def test_a_forced_eager_stance_runs_the_model_as_written():
    ran = []

    def inner(gm, inputs):
        return lambda *args: ran.append(1) or gm.forward(*args)

    net, x = Net(), torch.randn(40, 24)
    compiled = torch.compile(net, backend="ce_fx", options={**PLAN, "inner": inner})
    with rewritten_by_the_backend():
        torch.testing.assert_close(compiled(x), net(x))
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=0)
    assert len(ran) == 1
    compiled(x)
    assert len(ran) == 2


class Fails:
    """An inner compiler that takes the graph as it was written only."""

    def __init__(self, wanted):
        self.wanted, self.seen = wanted, []

    def __call__(self, gm, inputs):
        self.seen.append(gm.code)
        if not all(text in gm.code for text in self.wanted):
            raise RuntimeError("no such graph\nof mine")
        return gm.forward


@pytest.mark.parametrize("grad", [False, True])
def test_an_inner_compiler_that_fails_on_the_rewritten_graph_gets_the_written_one(grad, caplog):
    net, x, inner = Net(), torch.randn(40, 24), Fails(["linear("])
    with torch.set_grad_enabled(grad):
        fast = ce_fx.optimize(net, (x,), inner=inner, **PLAN)
        torch.testing.assert_close(fast(x), net(x))
    assert len(inner.seen) == 2 and inner.seen[0] != inner.seen[1]
    report = ce_fx.report(fast)
    assert report.count("rewritten") == 0 and report.flops_before == report.flops_after
    reason = "the inner compiler failed on the rewritten graph (RuntimeError: no such graph)"
    assert reason in [layer.reason for layer in report.layers]
    assert "which runs as written: RuntimeError: no such graph" in caplog.text
    compiled = torch.compile(net, backend="ce_fx", options={"inner": inner, **PLAN})
    torch.testing.assert_close(compiled(x), net(x))


def test_an_inner_compiler_that_fails_on_what_is_written_says_so_itself():
    inner = Fails(["nothing has this"])
    with pytest.raises(Exception, match="no such graph"):
        ce_fx.optimize(Net(), (torch.randn(40, 24),), inner=inner, **PLAN)
    assert len(inner.seen) == 2


def test_the_body_of_a_checkpoint_comes_back_where_the_inner_compiler_fails():
    net, x = Net(), torch.randn(40, 24, requires_grad=True)

    def call(x):
        return checkpoint(net, x, use_reentrant=False)

    bodies = []

    def fails(gm, inputs):
        bodies.append(gm.wrap_body_0.code)
        if len(bodies) == 1:
            raise RuntimeError
        return gm.forward

    compiled = torch.compile(call, backend="ce_fx", options={"inner": fails, **PLAN})
    torch.testing.assert_close(compiled(x), net(x))
    assert len(bodies) == 2 and bodies[0] != bodies[1] and "linear(" in bodies[1]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_inductor_compiles_the_written_graph_after_it_has_failed_on_ours(failing, dynamic, monkeypatch, caplog):
    """Within one compilation of Dynamo's: metrics and tracing state allow a second one."""
    place = importlib.import_module("torch._inductor.graph").GraphLowering
    run, calls = place.run, []

    def fails_once(self, *args):
        calls.append(self.is_backward)
        if calls.count(failing == "backward") == 1 and self.is_backward == (failing == "backward"):
            raise TypeError("cannot determine truth value")
        return run(self, *args)

    monkeypatch.setattr(place, "run", fails_once)
    net, x = Net(), torch.randn(40, 24)
    compiled = torch.compile(net, backend="ce_fx", options=PLAN, dynamic=dynamic)
    torch.testing.assert_close(gradients(net, compiled, x), gradients(net, net, x), rtol=1e-4, atol=1e-4)
    assert "fails on a rewritten graph" in caplog.text
    assert calls == ([False, False, True] if failing == "forward" else [False, True, False, True])


@pytest.mark.slow
def test_a_graph_whose_writes_are_undone_goes_through_inductor():
    """It is a copy of Dynamo's, whose inputs must still be known by their sources."""

    class Written(Net):
        def forward(self, x):
            y = torch.zeros(40, 24)
            y[:, :4] = self.first(x)
            return self.third(y @ self.second.weight @ self.first.weight)

    net, x = Written(), torch.randn(40, 24)
    compiled = torch.compile(net, backend="ce_fx", options=PLAN)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)
