"""What depends on weights only leaves the graph; everything else stays, and both parts give the written values."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from ce_fx.capture.reading import read
from ce_fx.fold import facts_of
from ce_fx.lower.hoist import hoist

SQUARE = nn.Parameter(torch.randn(8, 8))
A, B, K = (nn.Parameter(torch.randn(*shape)) for shape in ((8, 3), (3, 8), (3, 3, 3)))
X = torch.randn(2, 8, 5, 5)


def parts(function, *inputs, **more):
    """The graph of a function, and its parts; Parameters among the inputs are weights."""
    gm = symbolic_trace(function)
    with torch.no_grad():
        facts = facts_of(gm, inputs, read(gm, inputs))
    return gm, hoist(gm, replace(facts, **more))


def folded(function, *inputs):
    """Check that the parts together give what the function gives; the folded values, as nodes' names."""
    gm, both = parts(function, *inputs)
    if both is None:
        return []
    before = str(gm.graph)
    names = [n.name for n in both.rest_gm.graph.find_nodes(op="placeholder")]
    assert names[: len(inputs)] == [n.name for n in gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        sources = [inputs[s] if isinstance(s, int) else getattr(gm, s) for s in both.sources]
        values = both.weights_gm(*sources)
        assert [v.shape for v in values] == [f.shape for f in both.fakes]
        torch.testing.assert_close(both.rest_gm(*inputs, *values), gm(*inputs))
    assert str(gm.graph) == before
    return [name.removeprefix("folded_") for name in names[len(inputs) :]]


def kernel(a, b, k):
    return torch.einsum("tr,rs,rhw->tshw", a, b, k)


def test_a_kernel_made_of_factors():
    assert folded(lambda x, a, b, k: F.conv2d(x, kernel(a, b, k)), X, A, B, K) == ["einsum"]


def test_the_largest_value_alone_is_kept():
    def function(x, a, b):
        return x @ (a @ b).t().relu().reshape(8, 8)

    assert folded(function, torch.randn(4, 8), A, B) == ["reshape"]
    gm, both = parts(function, torch.randn(4, 8), A, B)
    assert [n.op for n in both.rest_gm.graph.nodes].count("call_function") == 1
    assert both.sources == (1, 2) and both.bytes == 8 * 8 * 4


def test_values_of_two_readers():
    assert folded(lambda x, a, b: (x @ a @ b.relu()) @ (a @ b) + (a @ b).sum(0), torch.randn(4, 8), A, B) == [
        "relu",
        "matmul_2",
        "sum_1",
    ]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a, b: x @ b.t(),
        lambda x, a, b: x @ a.reshape(8, 3)[:, :2].permute(0, 1),
        lambda x, a, b: x @ a.contiguous().detach(),
        lambda x, a, b: (x @ a) @ b,
        lambda x, a, b: x.relu(),
    ],
    ids=["transposed", "views", "no work", "features first", "no weights"],
)
def test_views_of_weights_are_not_worth_it(function):
    assert folded(function, torch.randn(4, 8), A, B) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a, b: x @ (a @ b + torch.rand_like(b @ a).sum() * 0),
        lambda x, a, b: x @ F.alpha_dropout(a @ b, 0.0, True),
        lambda x, a, b: x @ (a @ b).mul_(2),
        lambda x, a, b: x @ torch.add(a @ b, 1, out=torch.empty(8, 8)),
    ],
    ids=["random", "dropout", "in place", "out="],
)
def test_what_may_not_be_repeated_stays(function):
    assert set(folded(function, torch.randn(4, 8), A, B)) <= {"matmul", "matmul_1"}  # it may be its input that is kept


def test_memory_that_is_written_to_stays():
    def function(x, a, b):
        dense = a @ b
        view = dense[0]
        view.add_(x[0])
        return x @ dense

    assert folded(function, torch.randn(4, 8), A, B) == []


def test_a_buffer_that_the_graph_writes_to_stays():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(8))
            self.register_buffer("count", torch.ones(8))

        def forward(self, x):
            self.count.add_(1)
            return x * (self.count * 2) * (self.scale * 2)

    gm = symbolic_trace(Counted())
    both = hoist(gm, facts_of(gm, (torch.randn(3, 8),), read(gm, (torch.randn(3, 8),))))
    assert both.sources == ("scale",)


def test_nothing_moves_across_a_change_of_state():
    gm = symbolic_trace(lambda x, a, b: x @ (a @ b) @ (b.t() @ b))
    anchor = next(n for n in gm.graph.nodes if n.name == "t")
    with gm.graph.inserting_before(anchor):
        gm.graph.call_function(torch._C._set_grad_enabled, (True,))
    gm.recompile()
    inputs = (torch.randn(4, 8), A, B)
    with torch.no_grad():
        both = hoist(gm, facts_of(gm, inputs, read(gm, inputs)))
    assert [n.name for n in both.rest_gm.graph.find_nodes(op="placeholder")][3:] == ["folded_matmul"]


def test_a_users_function_stays():
    gm = symbolic_trace(lambda x, a, b: x @ torch.exp(a @ b))
    next(n for n in gm.graph.nodes if n.name == "exp").target = lambda w: w.exp()
    inputs = (torch.randn(4, 8), SQUARE, SQUARE)
    both = hoist(gm, facts_of(gm, inputs, read(gm, inputs)))
    assert [n.name for n in both.rest_gm.graph.find_nodes(op="placeholder")][3:] == ["folded_matmul"]


def test_factories_count_as_weights():
    assert folded(lambda x, a: x @ (a + torch.eye(8, 3)), torch.randn(4, 8), A) == ["add"]
    gm = symbolic_trace(lambda x: x @ x)
    product = next(n for n in gm.graph.nodes if n.op == "call_function")
    with gm.graph.inserting_before(product):
        product.args = (product.args[0], gm.graph.call_function(torch.eye, (8,)))
    gm.recompile()
    x = torch.randn(4, 8)
    both = hoist(gm, facts_of(gm, (x,), read(gm, (x,))))
    assert both.sources == () and torch.equal(both.rest_gm(x, *both.weights_gm()), x)


def test_several_values_of_one_node():
    def function(x, a, b):
        both = (a @ b).chunk(2, 0)
        return x @ both[0].t() + both[1].sum()

    assert folded(function, torch.randn(4, 8), A, B) == ["t", "sum_1"]
    gm, both = parts(lambda x, a: torch.cat((a @ a).chunk(2, 0)) + x, torch.randn(8, 8), SQUARE)
    assert len(both.fakes) == 1  # `cat` is handed the tuple: weight-only as well
    gm, both = parts(
        lambda x, a: [x @ y for y in [torch.stack(a.exp().chunk(2, 0)).sum(0)]][0], X[0, 0, :4, :4], SQUARE
    )
    assert [f.shape for f in both.fakes] == [(4, 8)]


def test_too_large_a_value_leaves_its_ancestors():
    """An outer sum is no kernel of what reads it: 64 elements of two weights of 8."""
    a, b = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
    assert folded(lambda x, a, b: x + (a.exp()[:, None] + b.exp()), torch.randn(8, 8), a, b) == ["getitem", "exp_1"]
    assert folded(lambda x, a, b: x * (a.exp()[:, None] + b.exp()), torch.randn(8, 8), a, b) == ["add"]


def test_a_value_that_is_handed_out_is_copied():
    gm, both = parts(lambda x, a: (a.exp().t(), x @ a.exp()), torch.randn(4, 8), SQUARE)
    values = both.weights_gm(torch.randn(8, 8))
    first = both.rest_gm(torch.randn(4, 8), torch.randn(8, 8), *values)[0]
    assert first.data_ptr() not in [value.data_ptr() for value in values]


def test_attributes_and_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 8))
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return x @ (self.inner(self.w) * self.w)

    gm = symbolic_trace(Net())
    x = torch.randn(4, 8)
    reading = read(gm, (x,))
    facts = facts_of(gm, (x,), reading)
    assert hoist(gm, facts) is None  # a module that is called may flip its mode: not folded at run time
    both = hoist(gm, replace(facts, ops=reading.ops))
    assert both.sources == ("w",) and isinstance(both.weights_gm, GraphModule)
    torch.testing.assert_close(both.rest_gm(x, *both.weights_gm(gm.w)), gm(x))


def test_an_exported_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.k = A, B, K

        def forward(self, x):
            return F.conv2d(x, kernel(self.a, self.b, self.k))

    gm = torch.export.export(Net(), (X,)).module()
    both = hoist(gm, facts_of(gm, (X,), read(gm, (X,))))
    assert both.sources == ("a", "b", "k")
    (out,) = both.rest_gm(X, *both.weights_gm(A, B, K))
    torch.testing.assert_close(out, gm(X))


def test_what_is_printed_is_printed_in_every_call(capsys):
    gm = symbolic_trace(lambda x, a: x @ a.exp())
    with gm.graph.inserting_after(next(n for n in gm.graph.nodes if n.name == "exp")):
        gm.graph.call_function(print, (next(n for n in gm.graph.nodes if n.name == "a"),))
    gm.recompile()
    inputs = (torch.randn(4, 8), SQUARE)
    both = hoist(gm, facts_of(gm, inputs, read(gm, inputs)))
    capsys.readouterr()
    both.rest_gm(*inputs, *both.weights_gm(SQUARE))
    assert capsys.readouterr().out.startswith("Parameter")


def test_a_sparse_weight_stays():
    sparse = nn.Parameter(torch.eye(8).to_sparse())
    gm = symbolic_trace(lambda x, a, s: x @ a.exp() + torch.sparse.mm(s, x.t()).t())
    inputs = (torch.randn(4, 8), SQUARE, sparse)
    with torch.no_grad():
        both = hoist(gm, facts_of(gm, inputs, read(gm, inputs)))
        torch.testing.assert_close(both.rest_gm(*inputs, *both.weights_gm(SQUARE)), gm(*inputs))
    assert both.sources == (1,)
