"""The rewrite as a pass of stock Inductor: values, caches, bodies of checkpoints, ahead of time."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import ce_fx
from ce_fx.tune import calibrate, machine
from tests.compile.net import Net, gradients, in_process
from tests.tune.planted import other_device, sample

OPTIONS = {"objective": "flops", "tune": False}


def rewritten(one):
    return one.report().count("rewritten")


def test_values_and_gradients():
    net, x = Net().double(), torch.randn(40, 24, dtype=torch.float64)
    one = ce_fx.InductorPass(**OPTIONS)
    fast = torch.compile(net, options={"pre_grad_custom_pass": one})
    torch.testing.assert_close(gradients(net, fast, x), gradients(net, net, x))
    assert rewritten(one) == 1
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))


def test_the_body_of_a_checkpoint_is_visited():
    net, x = Net().double(), torch.randn(40, 24, dtype=torch.float64)
    one = ce_fx.InductorPass(**OPTIONS)

    def run(x):
        return checkpoint(net, x, use_reentrant=False)

    fast = torch.compile(run, options={"pre_grad_custom_pass": one})
    torch.testing.assert_close(gradients(net, fast, x), gradients(net, run, x))
    assert rewritten(one) == 1
    assert len([layer for layer in one.report().layers if layer.expression]) == 1


@pytest.mark.slow
def test_a_second_process_finds_the_graph_and_another_objective_does_not(tmp_path):
    call = 'options={{"pre_grad_custom_pass": ce_fx.InductorPass(objective="{}", tune=False)}}'
    runs = [in_process(tmp_path, call.format(how), "import ce_fx") for how in ("flops", "flops", "memory")]
    assert max(run["error"] for run in runs) < 1e-5
    hits = [run["counters"]["inductor"].get("fxgraph_cache_hit", 0) for run in runs]
    assert hits == [0, 1, 0]


def test_its_name_in_caches_is_that_of_its_options():
    names = [ce_fx.InductorPass(**options).uuid() for options in (OPTIONS, OPTIONS, {**OPTIONS, "objective": "memory"})]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("package", [ce_fx, torch])
def test_another_version_has_another_name_in_caches(package, monkeypatch):
    before = ce_fx.InductorPass(**OPTIONS).uuid()
    monkeypatch.setattr(package, "__version__", "0.0.0")
    assert ce_fx.InductorPass(**OPTIONS).uuid() != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_another_calibration_has_another_name_in_caches(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(machine, "obstacle", lambda device: None)
    names = [ce_fx.InductorPass(**OPTIONS).uuid()]
    for speed in (1, 2):
        model = other_device(speed)
        monkeypatch.setattr(calibrate, "measure", lambda one, *_, model=model: sample(model, one.op))
        calibrate.calibrate("cpu", dtype)
        names.append(ce_fx.InductorPass(**OPTIONS).uuid())
    calibrate._known.clear()  # another process
    assert len(set(names)) == 3 and ce_fx.InductorPass(**OPTIONS).uuid() == names[-1]


def test_its_name_in_caches_is_computed_once(monkeypatch):
    one = ce_fx.InductorPass(**OPTIONS)
    before = one.uuid()
    monkeypatch.setattr("ce_fx.inductor_pass.all_stored", lambda: pytest.fail("computed again"))
    assert one.uuid() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"objektive": "time"}, "did you mean 'objective'"),
        ({"objective": "speed"}, "'time', 'flops' or 'memory'"),
        ({"fold": True}, "backend='ce_fx'"),
        ({"mode": "max-autotune"}, "mode=.."),
        ({"inner": "eager"}, "the pass is Inductor's"),
        ({"dynamic": True}, r"torch.compile\(model, dynamic="),
    ],
)
def test_bad_options_are_errors_when_they_are_given(options, says):
    with pytest.raises(ce_fx.CeFxError, match=says):
        ce_fx.InductorPass(**options)


def test_a_graph_without_values_is_left_alone():
    gm = torch.fx.symbolic_trace(Net())
    before = str(gm.graph)
    one = ce_fx.InductorPass(**OPTIONS)
    one(gm.graph)
    assert str(gm.graph) == before
    assert one.report().layers == ()


@pytest.mark.slow
def test_ahead_of_time(tmp_path):
    net, x = Net().eval(), torch.randn(40, 24)
    one = ce_fx.InductorPass(**OPTIONS)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2"), inductor_configs={"pre_grad_custom_pass": one}
        )
        fast = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)
    assert rewritten(one) == 1
