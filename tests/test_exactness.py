"""Where a rewrite could quietly differ: memory that is shared or written to, strange tensors, arrays as attributes."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import ce_fx
from ce_fx.capture.numpy_attrs import Ints
from ce_fx.capture.reading import Reading, read
from ce_fx.options import Options
from ce_fx.rewrite import rewrite_graph


class Pair(nn.Module):
    """Two 1x1 convolutions with a wide middle: merging their kernels saves FLOPs at any size."""

    def __init__(self, around=None):
        super().__init__()
        self.a = nn.Conv2d(8, 64, 1, bias=False)
        self.b = nn.Conv2d(64, 8, 1, bias=False)
        self.around = around

    def forward(self, *args):
        return self.b(self.a(*args)) if self.around is None else self.around(self, *args)


def optimized(around=None):
    model = Pair(around).eval()
    return ce_fx.optimize(model, objective="flops"), model


def rewritten(fast):
    return ce_fx.report(fast).count("rewritten")


def x_(batch=2):
    return torch.randn(batch, 8, 6, 6)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_inputs_that_overlap_in_memory_may_be_written_to():
    """`x` and `c` are views of one tensor, which neither FX nor Dynamo's guards know."""

    def around(m, x, c):
        y = m.a(c)
        x.add_(1)
        return m.b(y)

    fast, model = optimized(around)
    base = x_(3)
    twin = base.clone()
    close(fast(base[:2], base[1:]), model(twin[:2], twin[1:]))
    assert rewritten(fast) == 0
    close(base, twin)


def test_a_write_to_an_input_reaches_no_parameter_and_no_other_dtype():
    gm = torch.fx.symbolic_trace(lambda x, y, z, w: (x.add_(1), y * 1, z * 1, w * 1))
    inputs = (torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.int64), nn.Parameter(torch.ones(2)))
    reading = read(gm, inputs)
    x, y, z, w, *_ = gm.graph.nodes
    written = {storage for _, storage in reading.mutations}
    assert written == {Reading.storage(reading.fakes[x]), Reading.storage(reading.fakes[y])}


def test_training_statistics_are_written_to():
    norm = nn.BatchNorm2d(8)
    gm = torch.fx.symbolic_trace(
        lambda x, m, v, t=True: F.batch_norm(x, m, v, training=True) + F.batch_norm(x, m, v, training=False)
    )
    reading = read(gm, (x_(), norm.running_mean, norm.running_var))
    _, m, v, *_ = gm.graph.nodes
    assert [s for _, s in reading.mutations if s == Reading.storage(reading.fakes[m])]
    assert {own.name for own, _ in reading.mutations} == {"batch_norm"}


def test_an_input_that_was_written_to_before():
    def around(m, x):
        x.add_(1)
        y = m.b(m.a(x))
        y += x
        x.mul_(2)
        return y, x.view(-1)

    fast, model = optimized(around)
    x = x_()
    twin = x.clone()
    close(fast(x), model(twin))
    close(x, twin)
    assert rewritten(fast) == 1


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x.contiguous(),
        lambda x: x.to(x.dtype),
        lambda x: x.float(),
        lambda x: x.reshape(x.shape),
        lambda x: x.split(8, 1)[0],
        lambda x: F.dropout(x, 0.5, False),
    ],
)
def test_ops_that_do_nothing_before_and_after_a_region(before):
    fast, model = optimized(lambda m, x: before(m.b(m.a(before(x)))))
    x = x_()
    close(fast(x), model(x))
    assert rewritten(fast) == 1
    assert ce_fx.report(fast).mismatches == 0


def test_sizes_that_a_region_is_handed():
    gm = torch.fx.symbolic_trace(lambda x, w, v: x.view(x.size(0), -1) @ w @ v)
    inputs = (torch.randn(512, 3, 4), torch.randn(12, 64), torch.randn(64, 5))
    fast = ce_fx.rewrite(gm, inputs, objective="flops")
    assert fast.code != gm.code
    torch.testing.assert_close(fast(*inputs), gm(*inputs), rtol=1e-4, atol=1e-4)
    lifted = ce_fx.lift(gm, inputs)
    other = (torch.randn(7, 3, 4), *inputs[1:])
    torch.testing.assert_close(lifted(*other), gm(*other), rtol=1e-4, atol=1e-4)


def test_a_symbolic_size_inside_a_region_is_no_failure():
    def around(m, x):
        y = m.a(x).reshape(x.shape[0], 64, 36)
        return m.b(y.reshape(x.shape[0], 64, 6, 6))

    fast, model = optimized(around)
    for batch in (2, 3, 5):
        x = x_(batch)
        close(fast(x), model(x))
    assert len(ce_fx.graph_modules(fast)) == 2
    assert all("failed" not in layer.reason for layer in ce_fx.report(fast).layers)


class Negated(torch.Tensor):
    """A weight whose linear layer has the opposite sign."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            plain = [a.as_subclass(torch.Tensor) if isinstance(a, Negated) else a for a in args]
            return -F.linear(*plain, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize(
    "strange", [lambda w: w.as_subclass(Negated), lambda w: TwoTensor(w, 2 * w)], ids=["function", "dispatch"]
)
def test_tensor_subclasses_are_left_alone(strange):
    model = nn.Sequential(nn.Linear(8, 64, bias=False), nn.Linear(64, 8, bias=False))
    model[0].weight = nn.Parameter(strange(torch.randn(64, 8)))
    x = torch.randn(512, 8)
    fast = ce_fx.optimize(model, objective="flops")
    got, expected = fast(x), model(x)
    assert type(got) is type(expected)
    assert torch.equal(*(t.b if isinstance(t, TwoTensor) else t for t in (got, expected)))
    assert rewritten(fast) == 0
    gm = torch.fx.symbolic_trace(model)
    assert ce_fx.rewrite(gm, (x,), objective="flops").code == gm.code
    assert any("is left alone" in reason for reason in read(gm, (x,)).failures.values())


def test_quantised_tensors_are_left_alone():
    gm = torch.fx.symbolic_trace(lambda q, w, v: q.dequantize() @ w @ v)
    with warnings.catch_warnings():  # torch says once in a process that they are deprecated
        warnings.simplefilter("ignore")
        q = torch.quantize_per_tensor(torch.randn(512, 8), 0.1, 0, torch.quint8)
    inputs = (q, torch.randn(8, 64), torch.randn(64, 8))
    reading = read(gm, inputs)
    assert reading.failures[next(iter(gm.graph.nodes))] == "a quantised tensor is left alone"
    assert torch.equal(ce_fx.rewrite(gm, inputs, objective="flops")(*inputs), gm(*inputs))


@pytest.mark.parametrize("shaped", [lambda x, y: x.type_as(y), lambda x, y: x.to(y), lambda x, y: x.view_as(y)])
def test_a_tensor_that_a_region_reads_for_its_shape_or_dtype_only(shaped):
    gm = torch.fx.symbolic_trace(lambda x, y, a, b: shaped(x @ a, y) @ b)
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in ((9, 8), (9, 2), (8, 2), (2, 7))]
    rows = rewrite_graph(gm, inputs, Options(objective="flops", tune=False)).layers
    assert rows and not [row.reason for row in rows if "ce_fx failed" in row.reason]
    x, _, a, b = inputs
    torch.testing.assert_close(gm(*inputs), x @ a @ b)


def test_a_graph_that_returns_its_inputs():
    gm = torch.fx.symbolic_trace(lambda x, y: (y, x))
    x, y = torch.randn(2), torch.randn(3)
    got = ce_fx.rewrite(gm, [x, y])(x, y)
    assert got[0] is y and got[1] is x


def test_defaults_of_placeholders_are_read():
    gm = torch.fx.symbolic_trace(lambda x, s=2.0: x * s)
    assert not read(gm, (x_(),)).failures


ARRAY_CODE = {
    "times": lambda p: p * 2,
    "times from the left": lambda p: 2 * p,
    "plus": lambda p: p + 1,
    "plus itself": lambda p: p + p,
    "plus a tuple": lambda p: (1, 1) + p,
    "minus": lambda p: 5 - p,
    "halved": lambda p: p // 2,
    "negative": lambda p: -p,
    "sliced": lambda p: p[:1] * 3,
    "reversed": lambda p: p[::-1],
    "compared": lambda p: [(p == 1).any(), (p != 1).all(), (p > 0).all(), (p <= 1).all()],
    "methods": lambda p: [p.prod(), p.max(), p.sum(), p.shape[0], p.size, p.ndim],
    "cast": lambda p: p.astype(float),
    "with an array": lambda p: p * np.array([2, 3]),
    "as an array": lambda p: np.cumsum(p),
}


@pytest.mark.parametrize("name", ARRAY_CODE)
def test_ints_calculate_as_the_array_would(name):
    code = ARRAY_CODE[name]
    assert [float(v) for v in code(Ints((1, 2)))] == [float(v) for v in code(np.array([1, 2]))]


@pytest.mark.parametrize("name", ARRAY_CODE)
def test_layers_that_calculate_with_arrays_keep_their_values(name):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = np.array([1, 2])

        def forward(self, x):
            return x * sum(10**n * float(v) for n, v in enumerate(ARRAY_CODE[name](self.p)))

    model = Layer()
    x = torch.ones(3)
    expected = model(x)
    fast = ce_fx.optimize(model)
    assert type(model.p) is Ints
    assert torch.equal(fast(x), expected)
    assert torch.equal(model(x), expected), "the original keeps running as written"
    ce_fx.restore_(fast)
    assert type(model.p) is type(fast.p) is np.ndarray


def test_ints_are_copied_and_have_what_an_array_has():
    ints = Ints((1, 2))
    assert copy.copy(ints).tolist() == [1, 2] and not hasattr(ints, "no_such_method")
    assert (ints == (1, 3)).tolist() == [True, False] and not Ints([0]) and Ints([3])
    with pytest.raises(ValueError, match="ambiguous"):
        bool(ints == 1)


@pytest.mark.parametrize("index", [lambda x, p: x[p], lambda x, p: x[:, p], lambda x, p: x[torch.as_tensor(p)]])
def test_an_array_that_is_an_index_stays_one(index):
    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = np.array([2, 0])

        def forward(self, x):
            return index(x, self.p) * 2

    model, x = Picks(), torch.randn(4, 4, 4)
    expected = model(x)
    assert torch.equal(ce_fx.optimize(model)(x), expected)
    assert torch.equal(model(x), expected)


def test_a_refused_optimize_leaves_a_view_as_it_was():
    fast, model = optimized()
    x = x_()
    close(fast(x), model(x))
    with pytest.raises(ce_fx.CeFxError, match="an optimised view already"):
        ce_fx.optimize_(fast)
    assert rewritten(fast) == 1
    close(fast(x), model(x))


def test_lazy_modules_may_be_warmed_up():
    model = nn.Sequential(nn.LazyConv2d(8, 1), nn.LazyBatchNorm2d(), nn.Conv2d(8, 4, 1)).eval()
    x = x_()
    fast = ce_fx.optimize(model, (x,))
    close(fast(x), model(x))


def test_an_exported_graph_follows_replaced_parameters():
    model = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)).eval()
    x = x_()
    gm = ce_fx.capture(model, (x,))
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, assign=True)
    close(gm(x), model(x))
    model[0].weight = nn.Parameter(torch.randn(4, 8, 1, 1))
    close(gm(x), model(x))
    assert list(gm.state_dict()) == list(model.state_dict())


def _value_and_view(m, x):
    y = m.b(m.a(x))
    return y, y[:, :4]


FRESH = {
    "chain": lambda m, x: (m.b(m.a(x)),),
    "behind a copy": lambda m, x: (m.b(m.a(x * 1.0)), x * 1.0),
    "a sum that cancels": lambda m, x: (x + m.b(m.a(x)) - m.b(m.a(x)),),
    "a view of a result": _value_and_view,
    "the kernel too": lambda m, x: (m.b(m.a(x)), torch.einsum("orhw,rihw->oihw", m.b.weight, m.a.weight)),
}


def _shared(tensors):
    keys = [t.untyped_storage().data_ptr() for t in tensors]
    return [keys.index(key) for key in keys]


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", FRESH)
def test_results_share_memory_with_nothing_new_and_may_be_written_to(name, fold):
    model, x = Pair(FRESH[name]).eval(), x_()
    fast, weights = ce_fx.optimize(model, objective="flops", fold=fold), list(model.parameters())
    before = [t.clone() for t in (x, *weights)]
    with torch.no_grad():
        for _ in range(2):
            got, expected = fast(x), model(x)
            for a, b in zip(got, expected, strict=True):
                close(a, b)
            assert _shared([*got, x, *weights]) == _shared([*expected, x, *weights])
            for result in got:
                result.add_(1)
            assert all(map(torch.equal, before, (x, *weights)))
