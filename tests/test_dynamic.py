"""Symbolic sizes: one graph for any batch, length and resolution, with the values and gradients of each."""

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

import ce_fx
from tests.backend_rows import rewritten_by_the_backend, rows_of_the_backend
from tests.branches.compare import picked


class Factorised2d(nn.Module):
    """A TT convolution of large rank."""

    def __init__(self, rank=32, stride=1):
        super().__init__()
        self.a = nn.Conv2d(8, rank, 1, bias=False)
        self.h = nn.Conv2d(rank, rank, (3, 1), (stride, 1), (1, 0), bias=False)
        self.w = nn.Conv2d(rank, rank, (1, 3), (1, stride), (0, 1), bias=False)
        self.b = nn.Conv2d(rank, 8, 1, bias=False)

    def forward(self, x):
        return self.b(self.w(self.h(self.a(x)))).relu()


class Factorised1d(nn.Module):
    """A CP convolution over time, causal or not."""

    def __init__(self, rank=64, causal=False):
        super().__init__()
        self.causal = causal
        self.a = nn.Conv1d(16, rank, 1, bias=False)
        self.d = nn.Conv1d(rank, rank, 5, padding=0 if causal else 2, groups=rank, bias=False)
        self.b = nn.Conv1d(rank, 16, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(self.d(F.pad(x, (4, 0)) if self.causal else x)).relu()


class Adapted(nn.Module):
    """A linear layer over tokens and a factorised one beside it."""

    def __init__(self):
        super().__init__()
        self.w, self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 48, bias=False), nn.Linear(48, 64, bias=False)

    def forward(self, x):
        return (self.w(x) + self.b(self.a(x))).relu()


class Flattened(nn.Module):
    """Strips over an image, and pointwise steps over its positions in one axis, as tensorly-torch and SegFormer do."""

    def __init__(self, rank=32):
        super().__init__()
        self.a, self.b = nn.Conv1d(8, rank, 1, bias=False), nn.Linear(rank, 8)
        self.h = nn.Conv2d(rank, rank, (3, 1), padding=(1, 0), bias=False)

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.h(self.a(x.reshape(b, c, -1)).view(b, -1, h, w))
        return self.b(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, 8, h, -1).relu()


class Rows(nn.Module):
    """Linear layers over all tokens of all sequences."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 64, bias=False), nn.Linear(64, 16, bias=False)

    def forward(self, x):
        return self.b(self.a(x.reshape(-1, 16))).view(x.shape[0], -1, 16).relu()


def check(model, fast, shape, grad=True):
    """Equal values, strides and gradients of inputs and weights."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=grad)
    mine = x.detach().clone().requires_grad_(grad)
    expected, got = model(x), fast(mine)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert got.stride() == expected.stride()
    if grad:
        cotangent = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, [x, *model.parameters()], cotangent)
        found = torch.autograd.grad(got, [mine, *model.parameters()], cotangent)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def rewritten(fast):
    return [row for row in ce_fx.report(fast).layers if row.decision == "rewritten"]


CASES = {
    "batch": (Factorised2d(), [(2, 8, 12, 9), (3, 8, 12, 9), (64, 8, 12, 9), (7, 8, 12, 9)]),
    "resolution": (Factorised2d(), [(2, 8, 12, 9), (2, 8, 17, 14), (2, 8, 32, 5), (2, 8, 3, 2)]),
    "strides": (Factorised2d(stride=2), [(2, 8, 12, 9), (3, 8, 17, 14), (2, 8, 33, 6), (2, 8, 7, 4)]),
    "length": (Factorised1d(), [(8, 16, 30), (8, 16, 41), (9, 16, 12), (30, 16, 5), (50, 16, 4)]),
    "causal": (Factorised1d(causal=True), [(8, 16, 30), (8, 16, 41), (9, 16, 12), (50, 16, 4)]),
    "flattened": (Flattened(), [(2, 8, 12, 9), (3, 8, 12, 9), (2, 8, 17, 14), (4, 8, 5, 32)]),
    "flattened square": (Flattened(), [(2, 8, 12, 12), (3, 8, 15, 15), (2, 8, 12, 20), (2, 8, 9, 9)]),
    "rows": (Rows(), [(2, 10, 16), (3, 10, 16), (3, 7, 16), (5, 31, 16)]),
    "tokens": (Adapted(), [(2, 10, 64), (3, 10, 64), (3, 7, 64), (5, 31, 64)]),
}


@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("name", CASES)
def test_any_size_is_right(name, dynamic):
    model, shapes = CASES[name]
    fast = ce_fx.optimize(model.double(), objective="flops", tune=False, dynamic=dynamic)
    for shape in shapes:
        check(model, fast, shape)
    assert rewritten(fast)
    assert not ce_fx.report(fast).mismatches
    assert len(ce_fx.graph_modules(fast)) <= 4  # one for a size that is fixed at first, and new plans for other sizes


@pytest.mark.parametrize("name", ["flattened", "flattened square", "rows"])
def test_axes_of_symbolic_sizes_are_merged_and_parted(name):
    """All steps are one region: a product of sizes, and the quotient of one, is known for what it is."""
    model, (first, *shapes) = CASES[name]
    fast = ce_fx.optimize(model.double(), objective="flops", tune=False, dynamic=True)
    for shape in (first, *shapes):
        check(model, fast, shape)
    (row,) = rewritten(fast)
    assert len([layer for layer in ce_fx.report(fast).layers if layer.flops_before]) == 1, row


def view(model, **options):
    return ce_fx.optimize(model, **options)


def backend(model, **options):
    return torch.compile(model, backend="ce_fx", options=options)


@pytest.mark.parametrize(
    ("door", "inner", "objective"),
    [
        (view, "eager", "flops"),
        (view, "aot_eager", "flops"),
        (view, "inductor", "flops"),
        (view, "eager", "time"),
        (backend, "eager", "time"),
        (backend, "inductor", "time"),
    ],
)
def test_twenty_lengths_take_two_captures(door, inner, objective):
    model = Factorised1d().double()
    fast = door(model, objective=objective, tune=False, inner=inner)
    with rows_of_the_backend() as rows:
        for length in random.Random(0).sample(range(40, 200), 20):
            check(model, fast, (4, 16, length), grad=inner != "inductor")
    if door is view:
        assert len(ce_fx.graph_modules(fast)) == 2 and rewritten(fast)
    else:
        assert [row.decision for row in rows] == ["rewritten"] * 2  # one region in each graph


def test_a_last_partial_batch_is_captured_once():
    model = Factorised2d().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    for _ in range(3):
        for batch in (16, 16, 5):
            check(model, fast, (batch, 8, 12, 9))
    assert len(ce_fx.graph_modules(fast)) == 2


def test_a_marked_batch_takes_one_capture():
    model = Factorised2d().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    for batch in (8, 5, 3, 64):
        x = torch.randn(batch, 8, 12, 9, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    assert len(ce_fx.graph_modules(fast)) == 1
    assert rewritten(fast)


def test_a_square_image_and_then_another():
    """Height and width are one symbol where they are equal at first."""
    model = Factorised2d().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False, dynamic=True)
    for shape in ((2, 8, 12, 12), (2, 8, 15, 15), (2, 8, 12, 20), (2, 8, 9, 30)):
        check(model, fast, shape)
    assert rewritten(fast)


def test_an_eps_that_is_symbolic_is_no_failure():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()).double().eval()
    fast = ce_fx.optimize(model, dynamic=True, tune=False)
    for size in (9, 12, 15):
        check(model, fast, (2, 8, size, size))
    assert all("failed" not in row.reason for row in ce_fx.report(fast).layers)


def test_a_size_that_depends_on_data():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False), Adapted()

        def forward(self, x):
            return self.b(self.a(x[x[:, 0] > 0])).sum() + self.c(x)

    model = Masked().double()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), torch.no_grad():
        fast = ce_fx.optimize(model, objective="flops", tune=False)
        for rows in (90, 123, 70):  # so many that one merged weight takes fewer FLOPs
            check(model, fast, (rows, 64), grad=False)
    assert rewritten(fast)
    assert any("only known when it runs" in row.reason for row in ce_fx.report(fast).layers)


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_the_backend_with_dynamic_sizes(inner, caplog):
    model = Factorised1d().double()
    fast = torch.compile(model, backend="ce_fx", dynamic=True, options={"objective": "flops", "inner": inner})
    with rewritten_by_the_backend():
        for shape in CASES["length"][1]:
            check(model, fast, shape)
    assert "runs as written" not in caplog.text


def test_an_optimised_model_inside_a_compiled_one_with_dynamic_sizes():
    model = Factorised1d().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    whole = torch.compile(lambda x: fast(x) * 2, backend="eager", fullgraph=True, dynamic=True)
    for length in (30, 41, 12):
        x = torch.randn(2, 16, length, dtype=torch.float64)
        torch.testing.assert_close(whole(x), model(x) * 2, rtol=1e-9, atol=1e-9)


def test_a_rewritten_export_holds_for_any_size():
    model = Factorised1d().double()
    x = torch.randn(8, 16, 30, dtype=torch.float64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=4)
    gm = ce_fx.capture(model, (x,), dynamic_shapes=({0: batch, 2: length},))
    placeholders = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    fast = ce_fx.rewrite(gm, placeholders, objective="flops", tune=False)
    assert fast.code != gm.code
    for shape in ((2, 16, 30), (5, 16, 47), (1, 16, 9)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)


class Random(nn.Module):
    """A few convolutions with random geometry, alone, in parallel, behind a pad or around a shortcut."""

    def __init__(self, rng):
        super().__init__()
        self.dims, self.rng = rng.choice((1, 2)), rng
        self.convs = nn.ModuleList()
        self.steps = []
        channels = rng.choice((4, 6))
        for _ in range(rng.randint(2, 3)):
            kind = rng.choice(("one", "one", "two", "shortcut", "pad"))
            out = channels if kind == "shortcut" else rng.choice((2, 4, 6))
            kernel, dilation = [rng.choice((1, 1, 2, 3)) for _ in range(self.dims)], rng.choice((1, 1, 2))
            stride = 1 if kind == "shortcut" else rng.choice((1, 1, 1, 2))
            pad = rng.choice((0, 0, 1, 2))
            if kind in ("shortcut", "two"):
                kernel, dilation, pad = [rng.choice((1, 3)) for _ in range(self.dims)], 1, None
            groups = rng.choice((1, 1, 2))
            bias = rng.random() < 0.3
            self.steps.append((kind, len(self.convs)))
            for _ in range(2 if kind == "two" else 1):
                pads = [k // 2 if pad is None else pad for k in kernel]
                conv = (nn.Conv1d, nn.Conv2d)[self.dims - 1]
                self.convs.append(conv(channels, out, kernel, stride, pads, dilation, groups, bias))
                kernel = [rng.choice((1, 3)) for _ in range(self.dims)] if pad is None else kernel
            channels = out

    def forward(self, x):
        for kind, n in self.steps:
            if kind == "pad":
                x = F.pad(x, (2, 0) * self.dims)
            y = self.convs[n](x)
            x = y + self.convs[n + 1](x) if kind == "two" else y + x if kind == "shortcut" else y
        return x.relu()


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(30))
def test_random_convolutions_over_symbolic_sizes(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = Random(rng).double()
    torch._dynamo.reset()
    fast = ce_fx.optimize(model, objective=rng.choice(["flops", "time"]), tune=False, dynamic=True, verify=False)
    with picked(rng.choice(["any", "best"]), seed), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*planned wrongly.*")
        for _ in range(4):
            shape = (rng.randint(2, 5), model.convs[0].in_channels, *(rng.randint(9, 20) for _ in range(model.dims)))
            check(model, fast, shape)
    assert all("failed" not in row.reason for row in ce_fx.report(fast).layers)


def test_a_stride_with_a_symbol_of_its_own():
    """What has gaps in memory, or repeats itself, and needs a gradient keeps its strides."""
    model = nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)).double()
    fast = ce_fx.optimize(model, dynamic=True, objective="flops")
    for n in (5, 9, 12):
        x = torch.randn(n, 1, 16, dtype=torch.float64, requires_grad=True)
        for given in (x.expand(n, 7, 16), torch.cat([x, x], 1).expand(n, 2, 16)[::2]):
            got, expected = fast(given), model(given)
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
            assert got.stride() == expected.stride()
    assert not any("ce_fx failed" in row.reason for row in ce_fx.report(fast).layers)


class Rebuilt(nn.Module):
    """A Tucker convolution whose kernel is rebuilt, of what a strided convolution gives."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.core = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.out, self.into = nn.Parameter(torch.randn(16, 4) / 2), nn.Parameter(torch.randn(16, 4) / 4)

    def forward(self, x):
        kernel = torch.einsum("abhw,ta,sb->tshw", self.core, self.out, self.into)
        return F.conv2d(self.stem(x).relu(), kernel, padding=1)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_a_size_of_one_is_captured_by_itself(inner):
    """Everywhere else the plan holds, which asks whether a size that the graph computes is 1."""
    model = Rebuilt().double()
    fast = ce_fx.optimize(model, dynamic=True, objective="flops", inner=inner)
    for shape in ((4, 3, 20, 20), (2, 3, 31, 31), (7, 3, 8, 8), (3, 3, 3, 3)):
        check(model, fast, shape)
    graphs = ce_fx.graph_modules(fast)
    assert len(graphs) == 1 and len(rewritten(fast)) == 1
    check(model, fast, (4, 3, 2, 2))
    assert len(ce_fx.graph_modules(fast)) == 2


class Scaled(nn.Module):
    """An adapter by a float, which `dynamic=True` makes symbolic."""

    def __init__(self):
        super().__init__()
        self.w, self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 48, bias=False), nn.Linear(48, 64, bias=False)
        self.scale = 0.37

    def forward(self, x):
        return (self.w(x) + self.scale * self.b(self.a(x))).relu()


def test_what_is_scaled_by_a_symbolic_float_is_a_product():
    model = Scaled().double()
    fast = ce_fx.optimize(model, dynamic=True, objective="flops", tune=False)
    for n in (40, 70):
        check(model, fast, (n, 64))
    assert len(rewritten(fast)) == 1 and len(ce_fx.report(fast).layers) == 1
    model.scale = fast.scale = -1.25
    check(model, fast, (50, 64))
    assert len(ce_fx.graph_modules(fast)) == 1, "one graph for all scales"


def test_what_a_float_scales_and_no_region_takes_stays_as_it_was_written():
    """Where a part of the graph is rewritten, and where nothing is."""

    class Two(Scaled):
        def forward(self, x):
            return super().forward(x) + torch.sin(x) * self.scale

    for objective, rows, products in (("flops", 40, 1), ("time", 2, 2)):
        torch._dynamo.reset()
        model = Two().double()
        fast = ce_fx.optimize(model, dynamic=True, objective=objective, tune=False)
        check(model, fast, (rows, 64))
        (gm,) = ce_fx.graph_modules(fast)
        floats = gm.graph.find_nodes(op="call_method", target="item")
        assert len(floats[0].users) == products, gm.code


def test_half_precision_is_scaled_by_the_number_and_not_by_its_rounding():
    model = Scaled().bfloat16()
    model.scale = 0.3701171875 + 2**-12
    fast = ce_fx.optimize(model, dynamic=True, objective="flops", tune=False)
    x = torch.randn(40, 64).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=0)


def plans(fast):
    return [row.plan for row in ce_fx.report(fast).layers]


def test_a_plan_that_fits_no_longer_is_made_anew():
    """A few positions are convolved one factor after the other; many pay for one merged kernel."""
    model = Factorised1d().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    for length in (10, 12, 14):
        check(model, fast, (3, 16, length))
    small = plans(fast)
    assert len(ce_fx.graph_modules(fast)) == 2
    for length in (400, 300, 500):
        check(model, fast, (3, 16, length))
    assert len(ce_fx.graph_modules(fast)) == 3
    assert plans(fast) != small


def test_an_inner_compiler_is_not_asked_again_for_a_plan_that_fits_no_longer():
    """It takes longer than that would save; and Inductor fails on symbols that have an upper bound."""
    model, seen = Factorised1d().double(), []

    def inner(gm, inputs):
        ends = [
            value.node.shape_env.bound_sympy(value.node.expr).upper
            for value in inputs
            if isinstance(value, torch.SymInt)
        ]
        seen.extend(ends)
        return gm.forward

    fast = ce_fx.optimize(model, objective="flops", tune=False, dynamic=True, inner=inner)
    for length in (10, 12, 400, 14):
        check(model, fast, (3, 16, length))
    assert len(ce_fx.graph_modules(fast)) == 1 and seen and min(seen) > 10**6


def test_a_range_that_the_user_gives_gets_no_guard():
    """Dynamo refuses any guard within it."""
    model = Factorised1d().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    for length in (12, 400, 30):
        x = torch.randn(3, 16, length, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, 2, min=4, max=1000)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    assert len(ce_fx.graph_modules(fast)) == 1


def test_a_mark_without_a_range_may_be_planned_anew():
    model = Factorised1d().double()
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    for length in (12, 400, 30, 500):
        x = torch.randn(3, 16, length, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, 2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    assert len(ce_fx.graph_modules(fast)) == 2


class Written(nn.Module):
    """A CP convolution and a chain of matrices, as strings."""

    def __init__(self, string="bshw,rt,rs,rh,rw->bthw|hw", **options):
        super().__init__()
        self.string, self.options = string, options
        self.w = nn.ParameterList(torch.randn(size) for size in ((7, 4), (7, 6), (7, 3), (7, 3)))
        self.v = nn.ParameterList(torch.randn(size) for size in ((2, 4), (2, 5)))

    def forward(self, x):
        y = ce_fx.conv_einsum(self.string, x, *self.w, **self.options).relu()
        return ce_fx.conv_einsum("bthw,rt,rs->bshw", y, *self.v)


STRINGS = {
    "batch": ({}, lambda n: (n + 2, 6, 11, 9)),
    "resolution": ({}, lambda n: (3, 6, 11 + n, 9 + 2 * n)),
    "strides": ({"stride": 2}, lambda n: (3 + n, 6, 11 + n, 40 - n)),
    "crop": ({"padding": {"h": 0, "w": (2, 0)}}, lambda n: (3, 6, 11 + n, 9 + 2 * n)),
    "circular": ({"padding_mode": "circular"}, lambda n: (3, 6, 11 + n, 9 + 2 * n)),
    "flipped": ({"flip": True, "dilation": 2}, lambda n: (3, 6, 11 + n, 9 + 2 * n)),
}


def counting():
    """The graphs that are captured, and a backend that traces them once: what was traced then runs for every size."""
    captures = []

    def count(gm, example_inputs):
        captures.append(gm)
        return aot_eager(gm, example_inputs)

    torch._dynamo.reset()
    return captures, count


@pytest.mark.parametrize("name", STRINGS)
def test_conv_einsum_of_twenty_sizes_takes_two_captures(name):
    options, shape = STRINGS[name]
    model = Written(**options).double()
    captures, count = counting()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    for n in range(20):
        check(model, compiled, shape(n))
    assert len(captures) <= 2


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_conv_einsum_of_twenty_batches_under_optimize(inner):
    model = Written().double()
    fast = ce_fx.optimize(model, fullgraph=True, tune=False, inner=inner)
    for batch in range(2, 22):
        check(model, fast, (batch, 6, 11, 9), grad=inner != "inductor")
    assert len(ce_fx.graph_modules(fast)) <= 2


def test_conv_einsum_of_operands_that_are_all_symbolic():
    """Depthwise, with weights that are inputs: groups are a number in torch's convolutions, so channels are fixed."""
    captures, count = counting()
    compiled = torch.compile(
        lambda x, w: ce_fx.conv_einsum("bcl,cl->bcl|l", x, w), backend=count, fullgraph=True, dynamic=True
    )
    w = torch.randn(6, 3, dtype=torch.float64)
    for batch in range(2, 12):
        x = torch.randn(batch, 6, 20 + batch, dtype=torch.float64)
        torch.testing.assert_close(compiled(x, w), F.conv1d(x, w[:, None], padding=1, groups=6), rtol=1e-9, atol=1e-9)
    assert len(captures) <= 2


def test_conv_einsum_where_features_become_shorter_than_the_kernel():
    """The longer operand is the features: that is a guard, and beyond it another graph."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: ce_fx.conv_einsum("bl,l->bl|l", x, w), backend="aot_eager", dynamic=True)
    w = torch.randn(5, dtype=torch.float64)
    for length in (9, 7, 5, 4, 3, 12):
        x = torch.randn(3, length, dtype=torch.float64)
        expected = ce_fx.conv_einsum("bl,l->bl|l", x, w)
        torch.testing.assert_close(compiled(x, w), expected, rtol=1e-9, atol=1e-9)


def test_a_graph_without_regions_has_no_ranges(caplog):
    fast = ce_fx.optimize(torch.nn.ReLU(), dynamic=True)
    with torch.no_grad():
        for n in (3, 4):
            fast(torch.randn(n, 5))
    assert not [record for record in caplog.records if record.name.startswith("ce_fx")]


def test_a_symbolic_integer_that_is_added_is_no_failure(caplog):
    torch._dynamo.reset()
    model = Factorised1d().double()
    fast = torch.compile(
        lambda x, n: model(x) + n, backend="ce_fx", dynamic=True, options={"inner": "eager", "objective": "time"}
    )
    x = torch.randn(8, 16, 30, dtype=torch.float64)
    with rows_of_the_backend() as rows:
        for n in (3, 4):
            torch.testing.assert_close(fast(x, n), model(x) + n, rtol=1e-9, atol=1e-9)
    assert "is not whole" not in caplog.text and "runs as written" not in caplog.text
    assert len(rows) > 1, "the report is whole"


def test_a_symbolic_integer_that_is_one_has_a_range_as_well(caplog):
    torch._dynamo.reset()
    model = Factorised1d().double()
    fast = torch.compile(
        lambda x, n: model(x) * n, backend="ce_fx", dynamic=True, options={"inner": "eager", "objective": "time"}
    )
    x = torch.randn(8, 16, 30, dtype=torch.float64)
    with rewritten_by_the_backend():
        for n in (1, 2):
            torch.testing.assert_close(fast(x, n), model(x) * n, rtol=1e-9, atol=1e-9)
    assert "holds for all sizes" not in caplog.text
