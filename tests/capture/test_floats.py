"""Numbers that a graph reads from tensors: what they scale is a product, as long as it means the same."""

import operator

import pytest
import torch
from torch.fx import Graph, GraphModule

import ce_fx


def graph_of(write=None, product=operator.mul):
    """`x @ a @ b` scaled by the number in a tensor, which is written to behind if asked for."""
    graph = Graph()
    x, a, b, number = map(graph.placeholder, ("x", "a", "b", "number"))
    read = graph.call_method("item", (number,))
    if write:
        graph.call_method(write, (number, 5.0))
    y = graph.call_function(torch.matmul, (x, a))
    y = graph.call_function(torch.matmul, (y, b))
    graph.output(graph.call_function(product, (read, y)))
    return GraphModule({}, graph)


def inputs(dtype=torch.float64, number=torch.float64, grad=False):
    shapes = (400, 64), (64, 48), (48, 64)
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [*tensors, torch.tensor(0.37, dtype=number, requires_grad=grad)]


def uses_of_number(gm):
    return [len(node.users) for node in gm.graph.find_nodes(op="call_method", target="item")]


def rewritten(gm, given):
    return ce_fx.rewrite(gm, given, objective="flops", tune=False)


@pytest.mark.parametrize("write", [None, "fill_"])
@pytest.mark.parametrize("product", [operator.mul, torch.mul])
@pytest.mark.parametrize("number", [torch.float64, torch.float32])
def test_a_number_is_taken_when_it_is_read(write, product, number):
    gm, given = graph_of(write, product), inputs(number=number)
    expected = gm(*[tensor.clone() for tensor in given])
    new = rewritten(gm, given)
    torch.testing.assert_close(new(*given), expected, rtol=1e-9, atol=1e-9)
    assert uses_of_number(new) == [0], "it is a factor of a product"
    assert float(given[-1]) == (5.0 if write else pytest.approx(0.37)), "what it writes it still writes"


def test_a_number_with_a_gradient_passes_none_on():
    gm, given = graph_of(), inputs(grad=True)
    given[0].requires_grad_()
    for one in (gm, rewritten(gm, given)):
        loss = one(*given).sum()
        gradients = torch.autograd.grad(loss, [given[0], given[-1]], allow_unused=True)
        assert gradients[0] is not None and gradients[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_alone(dtype):
    gm, given = graph_of(), inputs(dtype)
    assert uses_of_number(rewritten(gm, given)) == [1]


def test_whole_numbers_are_left_alone():
    gm, given = graph_of(), [*inputs()[:3], torch.tensor(3)]
    assert uses_of_number(rewritten(gm, given)) == [1]
