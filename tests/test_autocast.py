"""Mixed precision: the dtypes that are written, and an error against float64 of at most 1.5 times the written one."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ce_fx
from ce_fx.lower.verify import less_accurate
from tests.backend_rows import rewritten_by_the_backend

HALF = [torch.bfloat16, torch.float16]


class Factorised2d(nn.Module):
    def __init__(self, rank=32):
        super().__init__()
        self.a = nn.Conv2d(16, rank, 1, bias=False)
        self.h = nn.Conv2d(rank, rank, (3, 1), padding=(1, 0), bias=False)
        self.w = nn.Conv2d(rank, rank, (1, 3), padding=(0, 1), bias=False)
        self.b = nn.Conv2d(rank, 16, 1)

    def forward(self, x):
        return self.b(self.w(self.h(self.a(x))))


class Rebuilt(nn.Module):
    """A convolution and one with a rebuilt kernel."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(16, 16, 3, padding=1)
        self.a, self.b = nn.Parameter(torch.randn(8, 144) / 8), nn.Parameter(torch.randn(16, 8) / 3)

    def forward(self, x):
        return self.c(x) + F.conv2d(x, (self.b @ self.a).reshape(16, 16, 3, 3), padding=1)


class Merged(nn.Module):
    """An adapter that is added to its weight: half and full precision are mixed in weights only."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 64) / 8)
        self.a, self.b = nn.Parameter(torch.randn(8, 64) / 8), nn.Parameter(torch.randn(64, 8) / 3)

    def forward(self, x):
        return F.linear(x, self.w + self.b @ self.a)


class Bypass(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 48, bias=False), nn.Linear(48, 64, bias=False)

    def forward(self, x):
        return self.w(x) + 2 * self.b(self.a(x))


MODELS = {
    "factorised": (Factorised2d, (8, 16, 20, 20)),
    "rebuilt": (Rebuilt, (8, 16, 20, 20)),
    "merged": (Merged, (4, 64)),
    "bypass": (Bypass, (8, 40, 64)),
}


def error(got, truth):
    return float((got.detach().double() - truth.detach()).square().mean().sqrt())


def check(model, fast, x, autocast, grads=True):
    """Dtypes, strides, and errors of values and of weights' gradients."""
    exact = copy.deepcopy(model).double()
    truth = exact(x.double())
    with autocast():
        expected, got = model(x), fast(x)
    assert (got.dtype, got.stride()) == (expected.dtype, expected.stride())
    assert error(got, truth) <= 1.5 * error(expected, truth)
    if not grads:
        return
    cotangent = torch.randn(truth.shape).to(expected.dtype)
    wanted = torch.autograd.grad(truth, list(exact.parameters()), cotangent.double())
    theirs = torch.autograd.grad(expected, list(model.parameters()), cotangent)
    ours = torch.autograd.grad(got, list(model.parameters()), cotangent)
    for a, b, t in zip(ours, theirs, wanted, strict=True):
        assert a.dtype == b.dtype
        assert error(a, t) <= 1.5 * error(b, t) + 1e-6 * float(t.abs().max())


def rewritten(fast):
    return [row for row in ce_fx.report(fast).layers if row.decision == "rewritten"]


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", MODELS)
def test_autocast_around_the_model(name, dtype, inner):
    torch.manual_seed(0)
    kind, shape = MODELS[name]
    model = kind()
    fast = ce_fx.optimize(model, tune=False, objective="flops", inner=inner)
    check(model, fast, torch.randn(shape), lambda: torch.autocast("cpu", dtype))
    assert rewritten(fast)
    with torch.no_grad():
        check(model, fast, torch.randn(shape), lambda: torch.autocast("cpu", dtype), grads=False)
    check(model, fast, torch.randn(shape), nullcontext)  # and without, by a guard
    assert len(ce_fx.graph_modules(fast)) == 3


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_autocast_inside_the_model(inner):
    torch.manual_seed(0)

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Factorised2d(), Factorised2d()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                x = self.first(x)
            return self.second(x.to(self.second.a.weight.dtype))

    model = Inside()
    x = torch.randn(8, 16, 20, 20)
    fast = ce_fx.optimize(model, tune=False, objective="flops", inner=inner)
    expected, got = model(x), fast(x)
    assert got.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-3)
    assert len(rewritten(fast)) == 2
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_switched_off_inside():
    torch.manual_seed(0)

    class Off(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Factorised2d()

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.net(x)

    model = Off().double()
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    x = torch.randn(8, 16, 20, 20, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    assert rewritten(fast)


def test_inductor_under_autocast():
    torch.manual_seed(0)
    model = Factorised2d()
    fast = torch.compile(model, backend="ce_fx", options={"objective": "flops", "tune": False})
    with rewritten_by_the_backend():
        check(model, fast, torch.randn(8, 16, 20, 20), lambda: torch.autocast("cpu", torch.bfloat16))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", MODELS)
def test_models_in_half_precision(name, dtype):
    torch.manual_seed(0)
    kind, shape = MODELS[name]
    model = kind().to(dtype)
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    check(model, fast, torch.randn(shape).to(dtype), nullcontext)
    assert rewritten(fast)


def test_channels_last_under_autocast():
    model = Factorised2d().to(memory_format=torch.channels_last)
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    x = torch.randn(8, 16, 20, 20).to(memory_format=torch.channels_last)
    check(model, fast, x, lambda: torch.autocast("cpu", torch.bfloat16))
    assert rewritten(fast)


def test_dynamic_sizes_under_autocast():
    model = Factorised2d()
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    for shape in ((8, 16, 20, 20), (3, 16, 20, 20), (5, 16, 14, 9), (4, 16, 31, 7)):
        check(model, fast, torch.randn(shape), lambda: torch.autocast("cpu", torch.bfloat16))
    assert rewritten(fast) and len(ce_fx.graph_modules(fast)) <= 3


def test_what_is_computed_in_full_precision_under_autocast_is_kept():
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(1, 64)), nn.Parameter(torch.randn(64, 1))

        def forward(self, x):
            return x * self.a * self.b

    model = Full()
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    x = torch.randn(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), model(x))
    assert any("in float32 under autocast" in row.reason for row in ce_fx.report(fast).layers)


class Scaled(nn.Module):
    """What is scaled down first, as written, would be scaled with a weight, which has no such small numbers."""

    def __init__(self, by=4096):
        super().__init__()
        self.by = by
        self.a, self.b = nn.Linear(512, 64, bias=False), nn.Linear(64, 512, bias=False)
        self.c = nn.Linear(512, 8, bias=False)

    def forward(self, x):
        return self.c(self.b(self.a(x / self.by)))


def test_what_is_less_accurate_is_kept():
    model = Scaled().half()
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    x = torch.randn(256, 512).half()
    assert torch.equal(fast(x), model(x))
    assert [row.reason for row in ce_fx.report(fast).layers if row.reason.startswith("less accurate than as written")]


def test_what_could_overflow_in_float16_is_refused():
    """A sum of 512 numbers is made before it is scaled down, not behind."""
    first = torch.fx.symbolic_trace(lambda x, w: (x / 64) @ w)
    behind = torch.fx.symbolic_trace(lambda x, w: (x @ w) / 64)
    for dtype, refused in ((torch.float16, True), (torch.bfloat16, False)):
        leaves = [torch.empty(64, 512, dtype=dtype), torch.empty(512, 64, dtype=dtype)]
        reason = less_accurate(first, behind, leaves, weights=(1,))
        assert bool(reason) is refused
        assert not reason or "times as large as any that is written, in float16" in reason
        assert less_accurate(behind, first, leaves, weights=(1,)) is None


def test_a_model_whose_rewrite_could_overflow_in_float16_is_kept():
    """It scales first; rewritten, sums of numbers as large as it is given would be made before that."""
    model, x = Scaled(256), torch.randn(256, 512)
    for dtype, kept in ((torch.float16, True), (torch.bfloat16, False)):
        fast = ce_fx.optimize(model.to(dtype), tune=False, objective="flops")
        big = (x * 1e4).to(dtype)
        torch.testing.assert_close(fast(big), model(big), rtol=0.1, atol=0.2)
        (row,) = ce_fx.report(fast).layers
        assert ("times as large as any that is written, in float16" in row.reason) is kept
        assert row.decision == ("kept" if kept else "rewritten")


def test_a_loss_scaler_and_foreach_optimisers():
    torch.manual_seed(0)
    model = Factorised2d()
    other = copy.deepcopy(model)
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    losses = []
    for net, call in ((other, other), (model, fast)):
        optimiser = torch.optim.AdamW(net.parameters(), 1e-2, foreach=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        generator = torch.Generator().manual_seed(1)
        for step in range(8):
            x = torch.randn(4, 16, 12, 12, generator=generator)
            with torch.autocast("cpu", torch.float16):
                loss = (call(x) - x).square().mean()
            scaler.scale(loss / 2).backward()
            if step % 2:  # gradients of two steps are accumulated
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0] < 0.99 and rewritten(fast)


W, S, V = (24, 16, 1, 1), (24,), (8, 24, 1, 1)
RULES = {
    "depthwise": (
        lambda x, w, v: F.conv2d(F.conv2d(x, w, padding=1, groups=16), v),
        [(160, 1, 3, 3), (8, 160, 1, 1)],
    ),
    "scaled": (lambda x, w, s, v: F.conv2d(F.conv2d(x, w) * half(s).view(1, -1, 1, 1), v), [W, S, V]),
    "broadcast einsum": (
        lambda x, w, s, v: F.conv2d(torch.einsum("bchw,c->bchw", F.conv2d(x, w), half(s)), v),
        [W, S, V],
    ),
    "kron": (lambda x, a, b: x.movedim(1, -1) @ torch.kron(a, b), [(4, 4), (4, 4)]),
    "sum": (lambda x, w, v: F.conv2d(x, w).sum(2).mT @ v, [W, (24, 8)]),
    "mean": (lambda x, w, v: F.conv2d(x, w).mean((2, 3)) @ v, [W, (24, 8)]),
    "average pool": (lambda x, w, v: F.conv2d(F.avg_pool2d(F.conv2d(x, w), 2), v), [W, V]),
    "resize": (lambda x, w, v: F.conv2d(F.interpolate(F.conv2d(x, w), scale_factor=2, mode="bilinear"), v), [W, V]),
    "transposed": (lambda x, w, v: F.conv2d(F.conv_transpose2d(x, w, stride=2), v), [(16, 24, 2, 2), V]),
    "tensordot": (lambda x, a, b: torch.tensordot(x.movedim(1, -1), a, 1) @ b, [(16, 24), (24, 8)]),
    "addmm": (lambda x, s, a, b: torch.addmm(s, x.movedim(1, -1).flatten(0, 2), a) @ b, [S, (16, 24), (24, 8)]),
    "cat": (lambda x, w, v: F.conv2d(torch.cat([F.conv2d(x, w), half(x)], 1), v), [W, (8, 40, 1, 1)]),
    "bias": (lambda x, w, s, v: F.conv2d(F.conv2d(x, w, s), v), [W, S, V]),
    "merged": (lambda x, a, b: F.conv2d(x, torch.einsum("tr,rs->ts", a, b)[..., None, None]), [(8, 4), (4, 16)]),
}
PROMOTED = {
    "scaled": (lambda x, w, s, v: F.conv2d(F.conv2d(x, w) * s.view(1, -1, 1, 1), v), [W, S, V]),
    "cat": (lambda x, w, v: F.conv2d(torch.cat([F.conv2d(x, w), x], 1), v), [W, (8, 40, 1, 1)]),
}
"""What float32 makes float32 again ends a region."""


def half(t):
    return t.bfloat16()


class Ruled(nn.Module):
    def __init__(self, function, shapes):
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape) / 4) for shape in shapes)

    def forward(self, x):
        return self.function(x, *self.weights)


@pytest.mark.parametrize("name", RULES)
def test_the_dtype_of_every_rule_is_that_of_what_is_written(name):
    assert rewritten(of_dtypes_as_written(*RULES[name]))


@pytest.mark.parametrize("name", PROMOTED)
def test_what_is_promoted_is_left_as_written(name):
    assert not rewritten(of_dtypes_as_written(*PROMOTED[name]))


def of_dtypes_as_written(function, shapes):
    """An optimised model that has run under autocast: values, dtypes of results and gradients are those of its own."""
    model = Ruled(function, shapes)
    fast, x = ce_fx.optimize(model, tune=False, objective="flops"), torch.randn(4, 16, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = fast(x), model(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.1, atol=0.1 * float(expected.detach().abs().max()))
    found, wanted = (torch.autograd.grad(y.float().sum(), list(model.parameters())) for y in (got, expected))
    assert [g.dtype for g in found] == [g.dtype for g in wanted]
    return fast


def test_a_capture_under_autocast_runs_without_it():
    model, x = Factorised2d().eval(), torch.randn(2, 16, 12, 12)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            gm = ce_fx.capture(model, (x,))
            lifted = ce_fx.lift(gm, (x,))
        for run in (gm, lifted):
            assert run(x).dtype == torch.float32
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-4)


def test_two_regions_side_by_side_are_both_rewritten():
    """The second reads what the first gives, and not the end of the first's autocast."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 64, 1, bias=False),
        nn.Conv2d(64, 4, 3, padding=1),  # its bias meets the padding of the next
        nn.Conv2d(4, 64, 3, padding=1),
        nn.Conv2d(64, 16, 1),
    )
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    check(model, fast, torch.randn(2, 16, 12, 12), lambda: torch.autocast("cpu", torch.bfloat16))
    assert len(rewritten(fast)) == 2


def test_autocast_inside_a_checkpoint_is_left_when_it_has_been_recomputed():
    """A recomputation that stops early raises; autocast's cache of casted weights would then never be emptied."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Factorised2d()

        def forward(self, x):
            def body(x):
                with torch.autocast("cpu", torch.bfloat16):
                    return self.net(x)

            return torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False)

    model = Inside()
    fast = ce_fx.optimize(model, tune=False, objective="flops")
    fast(torch.randn(2, 16, 9, 9)).float().sum().backward()
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    assert depth == 1
