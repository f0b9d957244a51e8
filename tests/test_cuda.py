"""On a GPU: what is exact on the CPU is exact there, in float64 against the CPU, and mixed precision is as accurate.

TensorFloat-32 is torch's default for convolutions; where a test is of float32 it is compared with the written model's
own error, as in half precision.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import ce_fx
from benchmarks.paper import __main__ as paper
from benchmarks.paper.peak import peak_bytes
from tests.branches import program
from tests.branches.compare import compare
from tests.branches.program import DEVICE
from tests.fold.models import MODELS as FOLDED
from tests.models import factorized_conv
from tests.test_autocast import MODELS, Factorised2d, error
from tests.test_rounding import Pointwise, convolutions
from tests.train import kept

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
HALF = [torch.bfloat16, torch.float16]


def results(run, model, x, grad):
    with torch.set_grad_enabled(grad):
        y = run(x)
    if not grad:
        return [y]
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(y)
    return [y.detach(), *torch.autograd.grad(y, list(model.parameters()), seed)]


def assert_close(found, expected, tight):
    for mine, true in zip(found, expected, strict=True):
        scale = max(1.0, float(true.abs().max()))
        assert float((mine.to(true) - true).abs().max()) <= tight * scale


def layers():
    made = {name: (kind, shape) for name, (kind, shape) in MODELS.items()}
    for form in ("tt", "cp", "tucker"):
        for way in ("factorized", "reconstructed"):
            made[f"{form} {way}"] = (lambda form=form, way=way: factorized(form, way), (4, 16, 18, 18))
    made["pointwise"] = (lambda: Pointwise(True), (2, 64, 20, 20))
    return made


def factorized(form, way):
    pytest.importorskip("tltorch")
    return nn.Sequential(
        factorized_conv(16, 24, 1, form, 0.3, way), nn.ReLU(), factorized_conv(24, 16, 2, form, 0.3, way)
    )


LAYERS = layers()


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_in_double_precision_it_is_what_the_cpu_computes(name, grad, inner):
    kind, shape = LAYERS[name]
    model = kind().double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = results(model, model, x, grad)
    there = copy.deepcopy(model).to(CUDA)
    fast = ce_fx.optimize(there, tune=False, objective="flops", inner=inner)
    assert_close(results(fast, there, x.to(CUDA), grad), expected, 1e-10)
    assert ce_fx.report(fast).mismatches == 0


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("grad", [False, True])
def test_tuned_in_single_precision_it_is_as_accurate_as_written(monkeypatch, name, grad):
    monkeypatch.delenv("CE_FX_TUNE")
    kind, shape = LAYERS[name]
    model = kind().to(CUDA)
    x = torch.randn(shape, device=CUDA)
    fast = ce_fx.optimize(model, tune=True)
    exact = results(copy.deepcopy(model).double(), None, x.double(), False)[0]
    with torch.set_grad_enabled(grad):
        ours, theirs = (float((run(x).detach().double() - exact).square().mean().sqrt()) for run in (fast, model))
    assert ours <= 1.6 * theirs + 1e-7 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [*HALF, None])
@pytest.mark.parametrize("name", LAYERS)
def test_mixed_precision(name, dtype):
    kind, shape = LAYERS[name]
    model = kind().to(CUDA)
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    around = (lambda: torch.autocast("cuda", dtype)) if dtype else nullcontext
    x = torch.randn(shape, device=CUDA)
    exact = copy.deepcopy(model).double()(x.double())
    with around():
        expected, got = model(x), fast(x)
    assert (got.dtype, got.stride()) == (expected.dtype, expected.stride())
    ours, theirs = (error(y, exact) for y in (got, expected))
    assert ours <= 1.6 * theirs + 1e-7 * float(exact.abs().max())
    weights = list(model.parameters())
    mine, true = (torch.autograd.grad(y.float().sum(), weights) for y in (got, expected))
    assert [g.dtype for g in mine] == [g.dtype for g in true]


@pytest.mark.parametrize("dtype", HALF)
def test_a_model_in_half_precision_and_channels_last(dtype):
    model = Factorised2d().to(CUDA, dtype, memory_format=torch.channels_last)
    x = torch.randn(8, 16, 20, 20, device=CUDA, dtype=dtype).to(memory_format=torch.channels_last)
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    exact = copy.deepcopy(model).double()(x.double())
    expected, got = model(x), fast(x)
    assert (got.dtype, got.stride()) == (expected.dtype, expected.stride())
    assert error(got, exact) <= 1.6 * error(expected, exact)


def test_matmuls_stay_matmuls_where_convolutions_round(monkeypatch):
    monkeypatch.delenv("CE_FX_TUNE")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("has no TensorFloat-32")
    model, x = Pointwise(False).to(CUDA), torch.randn(2, 64, 56, 56, device=CUDA)
    fast = ce_fx.optimize(model, tune=True)
    with torch.no_grad():
        got, exact = fast(x), copy.deepcopy(model).double()(x.double())
    assert not convolutions(fast)
    assert float((got - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("kind", FOLDED)
def test_folded(kind):
    model, x = kind().eval().to(CUDA), torch.randn(3, 4, 9, 11, device=CUDA)
    fast = ce_fx.optimize(model, tune=False, objective="flops", fold=True)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)
        for parameter in model.parameters():
            parameter.mul_(1.25)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)


def test_a_model_moves_to_the_device_and_back():
    model = Factorised2d().double()
    fast, x = ce_fx.optimize(model, tune=False, objective="flops"), torch.randn(2, 16, 9, 9, dtype=torch.float64)
    expected = model(x).detach()
    for device in ("cpu", CUDA, "cpu"):
        fast.to(device)
        assert_close([fast(x.to(device)).detach()], [expected], 1e-10)


def test_an_audit_leaves_the_devices_random_numbers_as_they_were():
    model = nn.Sequential(Factorised2d(), nn.Dropout()).to(CUDA).train()
    x = torch.randn(2, 16, 9, 9, device=CUDA)
    before = torch.cuda.get_rng_state()
    report = ce_fx.audit(model, (x,), train=True)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert report.flops_before > 0


def test_training_with_a_grad_scaler_follows_the_written_model():
    torch.manual_seed(0)
    model = Factorised2d().to(CUDA)
    twin = copy.deepcopy(model)
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    x = torch.randn(16, 16, 12, 12, device=CUDA)
    losses = []
    for run, weights in ((fast, model), (twin, twin)):
        optimizer = torch.optim.SGD(weights.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cuda")
        for _ in range(10):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = (run(x) - x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_conv_einsum():
    x, a, b = (torch.randn(s, dtype=torch.float64) for s in ((3, 8, 11, 9), (5, 8, 3), (7, 5, 3)))
    here = ce_fx.conv_einsum("bshw,rsh,trw->bthw|hw", x, a, b, stride={"h": 2})
    there = ce_fx.conv_einsum("bshw,rsh,trw->bthw|hw", x.to(CUDA), a.to(CUDA), b.to(CUDA), stride={"h": 2})
    assert_close([there], [here], 1e-10)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_program(monkeypatch, seed):
    monkeypatch.setenv(DEVICE, "cuda")
    compare(program(seed), seed, end_to_end=seed % 4 == 0)


def test_the_calibration_of_the_device():
    from ce_fx.tune.calibrate import calibrate

    assert calibrate(CUDA).calibrated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["cp", "tucker", "tt", "tr", "bt", "ht", "rcp", "rtk", "rtt", "rtr", "rbt", "rht"])
def test_layers_are_decomposed_where_they_are(form, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 25, 8)).to(dtype)
    there = copy.deepcopy(model).to(CUDA)
    for each in (model, there):
        ce_fx.nn.tensorize(each, form, rate=0.3, sweeps=20, progress=False)
    errors = [[row.error for row in each.tensorize_report.replaced] for each in (model, there)]
    assert len(errors[0]) == 2 and errors[1] == pytest.approx(errors[0], abs=0.05)  # by sweeps that round otherwise
    assert {(p.device.type, p.dtype) for p in there.parameters()} == {("cuda", dtype)}
    x = torch.randn(3, 8, 5, 5, dtype=dtype)
    y = there(x.to(CUDA))
    assert (y.device.type, y.dtype) == ("cuda", dtype)
    tight = 1e-9 if dtype == torch.float64 else 3e-3  # convolutions in TensorFloat-32
    assert_close([y], [copy.deepcopy(there).cpu()(x).to(CUDA)], tight)
    dense = ce_fx.nn.densify(copy.deepcopy(there))
    assert {type(layer) for layer in dense} == {nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear}
    assert {(p.device.type, p.dtype) for p in dense.parameters()} == {("cuda", dtype)}
    assert_close([dense(x.to(CUDA))], [y], tight)


@pytest.mark.parametrize("dtype", HALF)
def test_a_kernel_in_half_precision_is_decomposed_on_the_device(dtype):
    torch.manual_seed(0)
    layer = ce_fx.nn.ConvEinsum.of_form("rtt", 8, 12, (3, 3), rate=0.5, device=CUDA, dtype=dtype)
    weight = torch.randn(12, 8, 3, 3, device=CUDA, dtype=dtype)
    error = ce_fx.nn.decompose_(layer, weight)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("cuda", dtype)}
    found = (layer.to_dense().weight - weight).double().norm() / weight.double().norm()
    assert abs(float(found) - error) < 0.02 and error < 0.9


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", kept.CASES)
def test_a_region_keeps_its_inputs_only(name, inner):
    model, x = kept.made(name)
    expected, before = kept.gradients(model, model, x)
    there, y = copy.deepcopy(model).to(CUDA), x.detach().to(CUDA).requires_grad_()
    fast = ce_fx.optimize(there, (y,), checkpoint=True, inner=inner, **kept.OPTIONS)
    found, bytes_kept = kept.gradients(fast, there, y)
    kept.same([each.cpu() for each in found], expected)
    between = {"between": 4 * 16 * 12 * 12 * 8, "tensorly": before - 1}  # what another region reads
    assert bytes_kept <= between.get(name, 0)


def test_peak_bytes_are_the_allocators():
    x = torch.zeros(1 << 20, device=CUDA)

    def step():
        (x + 1).relu().sum()

    step()
    assert peak_bytes(step, "cuda") == 2 * x.nbytes
    assert peak_bytes(lambda: x.view(-1), "cuda") == 0


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_layer_more_takes_what_is_kept_of_it(checkpoint):
    """With recomputation an RTT convolution keeps its input only, by the allocator's counter."""
    x, peaks = torch.randn(8, 16, 64, 64, device=CUDA), []
    for depth in (4, 6):
        layers = [
            ce_fx.nn.ConvEinsum.of_form("rtt", 16, 16, (3, 3), rank=3, padding=1, bias=False) for _ in range(depth)
        ]
        model = nn.Sequential(*(nn.Sequential(layer, nn.ReLU()) for layer in layers)).to(CUDA)
        fast = ce_fx.optimize(model, (x,), checkpoint=checkpoint, tune=False, objective="flops")
        assert ce_fx.report(fast).count("rewritten") >= depth - 1

        def step(fast=fast, model=model):
            torch.autograd.grad(fast(x).sum(), list(model.parameters()))

        step()
        peaks.append(peak_bytes(step, "cuda"))
    more = (peaks[1] - peaks[0]) / 2
    if checkpoint:
        assert x.nbytes <= more <= 1.05 * x.nbytes  # and gradients of weights
    else:
        assert more > 2 * x.nbytes


def test_the_papers_benchmark():
    cells = paper.main(["--quick", "--device", "cuda", "--rounds", "2", "--only", "ResNet-34"])
    assert [cell.error for cell in cells] == ["", ""]
    for cell in cells:
        assert max(cell.errors.values()) < 0.05
        assert set(cell.peaks) == set(cell.rounds)
        assert all(bytes_ > 0 for points in cell.peaks.values() for _, bytes_ in points)
