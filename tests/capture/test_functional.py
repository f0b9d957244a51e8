"""Writes to slices: out of place where nothing else sees the memory, and in place again where nothing is gained."""

import operator

import pytest
import torch
import torch.nn.functional as F

import ce_fx
from ce_fx.capture.functional import out_of_place
from ce_fx.capture.reading import read
from tests.lift.helpers import rand

setitem = operator.setitem
ALL, FIRST, LAST = slice(None), slice(0, 1), slice(-1, None)


def traced(function):
    """The graph of a function whose writes are calls of `setitem`."""
    tracer = torch.fx.Tracer(autowrap_functions=(operator.setitem,))
    return torch.fx.GraphModule(torch.nn.Module(), tracer.trace(function))


def border(x, b):
    y = F.pad(x, (1, 1))
    setitem(y, (ALL, ALL, FIRST), b)
    setitem(y, (..., LAST), b)
    return y * 2


def test_each_write_is_a_value():
    gm = traced(border)
    inputs = rand(2, 3, 4), rand(3, 1)
    assert out_of_place(gm.graph, read(gm, inputs))
    gm.recompile()
    scatters = gm.graph.find_nodes(op="call_function", target=torch.slice_scatter)
    assert [node.args[2:] for node in scatters] == [(2, 0, 1), (2, 5, 6)]
    assert not gm.graph.find_nodes(op="call_function", target=operator.setitem)
    torch.testing.assert_close(gm(*inputs), border(*inputs))


def to_an_input(x, b):
    setitem(x, (ALL, FIRST), b)
    return x * 2


def through_a_view(x, b):
    y = x.view(-1)
    setitem(y, (FIRST,), b)
    return x * y.view(x.shape)


def read_before(x, b):
    y = x * 2
    z = y.sum()
    setitem(y, (ALL, FIRST), b)
    return y * z


def seen_by_a_view(x, b):
    y = x * 2
    z = y.view(-1)
    setitem(y, (ALL, FIRST), b)
    return z * 2


def at_positions(x, b):
    y = x * 2
    setitem(y, (0, 1), b)
    return y * 2


def with_steps(x, b):
    y = x * 2
    setitem(y, (ALL, slice(None, None, 2)), b)
    return y * 2


def of_a_number(x, b):
    y = x * b
    setitem(y, (ALL, FIRST), 0.0)
    return y * 2


def of_more_dims(x, b):
    y = x * 2
    setitem(y, (ALL, FIRST), b.view(1, 1, 1))
    return y * 2


@pytest.mark.parametrize(
    "function",
    [to_an_input, through_a_view, read_before, seen_by_a_view, at_positions, with_steps, of_a_number, of_more_dims],
)
def test_what_others_see_is_left_alone(function):
    gm = traced(function)
    inputs = rand(3, 4), rand(1)
    before = str(gm.graph)
    assert not out_of_place(gm.graph, read(gm, inputs))
    assert str(gm.graph) == before
    fast = ce_fx.rewrite(gm, inputs, objective="flops", tune=False)
    torch.testing.assert_close(fast(*[x.clone() for x in inputs]), function(*[x.clone() for x in inputs]))


def test_a_write_without_gradients_leaves_those_of_the_whole():
    """As a value of its own it would be a constant, and so all that is computed from it."""
    x, b = rand(3, 4).requires_grad_(), rand(3, 1)
    gm = traced(lambda x, b: border(x.unsqueeze(0), b))
    for write in gm.graph.find_nodes(op="call_function", target=operator.setitem):
        with gm.graph.inserting_before(write):
            gm.graph.call_function(torch._C._set_grad_enabled, (False,))
        with gm.graph.inserting_after(write):
            gm.graph.call_function(torch._C._set_grad_enabled, (True,))
    gm.recompile()
    assert not out_of_place(gm.graph, read(gm, (x, b)))
    fast = ce_fx.rewrite(gm, (x, b), objective="flops", tune=False)
    (mine,) = torch.autograd.grad(fast(x, b).sum(), x)
    torch.testing.assert_close(mine, torch.full_like(x, 2.0))


def test_where_nothing_is_gained_the_graph_is_the_same():
    gm = traced(border)
    fast = ce_fx.rewrite(gm, (rand(2, 3, 4), rand(3, 1)), tune=False)
    assert str(fast.graph) == str(gm.graph)


def test_what_no_region_takes_in_is_written_in_place_again():
    def function(x, a, b, w):
        y = torch.relu(x @ a @ w)
        setitem(y, (ALL, FIRST), b)
        return torch.relu(y)

    gm = traced(function)
    inputs = rand(30, 3), rand(3, 40), rand(30, 1), rand(40, 2)
    fast = ce_fx.rewrite(gm, inputs, objective="flops", tune=False)
    assert str(fast.graph) != str(gm.graph)
    assert len(fast.graph.find_nodes(op="call_function", target=operator.setitem)) == 1
    assert not fast.graph.find_nodes(op="call_function", target=torch.slice_scatter)
    torch.testing.assert_close(fast(*inputs), function(*inputs))
