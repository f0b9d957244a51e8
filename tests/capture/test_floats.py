"""Numbers that a graph reads from tensors: what they scale is a product, as long as it means the same."""

import copy
import operator

import pytest
import torch
from torch.fx import Graph, GraphModule
from torch.nn import functional

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


class Branches(torch.nn.Module):
    """RepVGG: a 3x3 and a 1x1 convolution and the input, each normalised."""

    def __init__(self, channels=8):
        super().__init__()
        self.kernels = torch.nn.ModuleList(torch.nn.Conv2d(channels, channels, k, padding=k // 2) for k in (3, 1))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(channels, eps=0.3) for _ in range(3))

    def forward(self, x):
        return sum(norm(part) for norm, part in zip(self.norms, [*(k(x) for k in self.kernels), x], strict=True))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_eps_of_a_batch_norm_is_no_border(training, half):
    """Under `dynamic=True` it is a float that is known only when the graph runs."""
    model = Branches().double().train(training)
    x = torch.randn(3, 8, 9, 9, dtype=torch.float64)
    if half:
        model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
    graphs = []

    def inner(gm, example_inputs):
        graphs.append(gm)
        return gm.forward

    options = {"inner": inner, "objective": "flops", "tune": False}
    fast = torch.compile(copy.deepcopy(model), backend="ce_fx", dynamic=True, options=options)
    torch.testing.assert_close(fast(x), model(x))
    torch.testing.assert_close(fast(x[:2]), model(x[:2]))
    calls = [node.target for node in graphs[0].graph.nodes]
    assert sum(target in (torch.conv2d, functional.conv2d) for target in calls) == (2 if training or half else 1)
    assert (functional.batch_norm in calls) == (training or half)
    assert (torch.maximum in calls) == (not training and not half), "what is as written has no other words"


def test_eps_as_written_where_nothing_is_rewritten():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.BatchNorm1d(4, eps=0.3)).eval()
    graphs = []

    def inner(gm, example_inputs):
        graphs.append(gm)
        return gm.forward

    fast = torch.compile(model, backend="ce_fx", dynamic=True, options={"inner": inner, "tune": False})
    x = torch.randn(3, 4)
    torch.testing.assert_close(fast(x), model(x))
    (norm,) = graphs[0].graph.find_nodes(op="call_function", target=functional.batch_norm)
    assert norm.args[-1].target == "item"
