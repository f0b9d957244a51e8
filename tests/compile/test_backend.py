"""`torch.compile(model, backend="ce_fx")`: found by name, cached, and what Inductor sees is what it sees without."""

import pytest
import torch
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch.utils.checkpoint import checkpoint

import ce_fx
from tests.compile.net import Net, gradients, in_process

PLAN = {"objective": "flops", "tune": False}


@pytest.mark.slow
def test_a_process_that_never_imports_it_and_a_second_one_that_finds_the_graph(tmp_path):
    call = 'backend="ce_fx", options={"objective": "flops", "tune": False}'
    runs = [in_process(tmp_path, call) for _ in range(2)]
    assert max(run["error"] for run in runs) < 1e-5
    assert [run["counters"]["inductor"].get("fxgraph_cache_hit", 0) for run in runs] == [0, 1]


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
        for backend in (
            inner("stock"),
            lambda gm, inputs: lookup()(gm, inputs, options={**PLAN, "inner": inner("ce_fx")}),
        ):
            torch._dynamo.reset()
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
