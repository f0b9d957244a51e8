"""Integers that Dynamo takes for symbols are numbers where they are the geometry of a layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.backend_rows import rewritten_by_the_backend, rows_of_the_backend

CALLS = {
    "convolution": lambda x, w, stride, padding: functional.conv2d(x, w, None, stride, padding),
    "pool": lambda x, w, stride, padding: functional.conv2d(functional.avg_pool2d(x, 3, stride, padding), w),
}


class Behind(nn.Module):
    """Two pointwise layers around one whose geometry was read before a graph break."""

    def __init__(self, call="convolution", padding=(1, 2)):
        super().__init__()
        self.call, self.stride, self.padding = call, (2, 3), padding
        shapes = {"a": (32, 8, 1, 1), "b": (32, 32, 3, 3), "c": (4, 32, 1, 1)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(0.1 * torch.randn(shape, dtype=torch.float64)))

    def forward(self, x, length=None):
        stride, padding = self.stride, self.padding
        torch._dynamo.graph_break()
        x = functional.conv2d(x, self.a)
        x = CALLS[self.call](x, self.b, stride, padding)
        x = functional.conv2d(x, self.c)
        return x if length is None else x * padding[0] + length


def compiled(model, inner="eager"):
    torch._dynamo.reset()
    options = {"objective": "flops", "inner": inner, "tune": False}
    return torch.compile(model, backend="ce_fx", dynamic=True, options=options)


def captures():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def check(model, fast, batch=2):
    x = torch.randn(batch, 8, 11, 9, dtype=torch.float64, requires_grad=True)
    expected, got = model(x), fast(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for found, wanted in zip(*(torch.autograd.grad(y.sum(), [x, model.b]) for y in (got, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("call", CALLS)
def test_what_was_read_before_a_graph_break_is_a_number(call, inner):
    model = Behind(call, (1, 1) if call == "pool" else (1, 2))
    fast = compiled(model, inner)
    with rewritten_by_the_backend():
        check(model, fast)
    before = captures()
    for batch in (3, 5):
        check(model, fast, batch)
    assert captures() == before, "the batch still varies"


def test_another_padding_is_another_graph():
    model = Behind()
    fast = compiled(model)
    with rewritten_by_the_backend(3):
        for padding in ((2, 3), (3, 4), (4, 5)):
            model.padding = padding
            check(model, fast)
    for padding in ((1, 2), (2, 2), (0, 1), (1, 2)):
        model.padding = padding
        check(model, fast)


def test_what_nothing_is_gained_by_stays_a_symbol():
    model = Behind()
    model.forward = lambda x: _alone(model, x)
    fast = compiled(model)
    with rows_of_the_backend() as rows:
        check(model, fast)
        before = captures()
        model.padding = (2, 3)
        check(model, fast)
    assert rows and all(row.decision != "rewritten" for row in rows)
    assert captures() == before


def _alone(model, x):
    padding = model.padding
    torch._dynamo.graph_break()
    return functional.conv2d(functional.conv2d(x, model.a).relu(), model.b, None, 1, padding)


def test_an_integer_that_counts_elsewhere_stays_a_symbol():
    model = Behind(padding=(2, 3))
    fast = compiled(model)
    x = torch.randn(2, 8, 11, 9, dtype=torch.float64)
    with rows_of_the_backend() as rows:
        torch.testing.assert_close(fast(x, 3), model(x, 3), rtol=1e-9, atol=1e-9)
    assert any("is not a number in the graph" in row.reason for row in rows)


def test_a_range_that_the_user_gives_adds_no_guard():
    model = Behind()
    fast = compiled(model)
    x = torch.randn(4, 8, 11, 9, dtype=torch.float64)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=64)
    with rows_of_the_backend() as rows:
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    assert any("is not a number in the graph" in row.reason for row in rows)
