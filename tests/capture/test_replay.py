"""What is replayed from memory is what a trace reads: ops, arguments, values, gradients, shared memory."""

import gc
import warnings
import weakref

import pytest
import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

import ce_fx
from ce_fx.capture import replay
from ce_fx.capture.reading import read
from ce_fx.capture.replay import replayed
from ce_fx.lower.price import ops_of_nodes
from ce_fx.tune import candidates
from tests.branches import program
from tests.branches.compare import compare


def described(reading, gm):
    """Each own node's ATen ops: target, arguments by number, layout, gradient, price, and whose memory it is."""
    numbers, memory, found = {}, {}, []

    def number(node):
        return f"%{numbers.setdefault(node, len(numbers))}"

    def kept(op):
        key = op.meta.get("memory", reading.storage(op.meta["val"]))
        return memory.setdefault(key, len(memory)) if isinstance(op.meta["val"], torch.Tensor) else None

    def value(fake):
        kinds = (fake.shape, fake.stride(), fake.dtype, fake.device) if isinstance(fake, torch.Tensor) else fake
        return pytree.tree_map_only(torch.Tensor, lambda t: (t.shape, t.stride(), t.dtype), kinds)

    for node in gm.graph.find_nodes(op="placeholder"):
        carrier = reading.values[node]
        found.append((number(carrier), kept(carrier), carrier.meta["needs_grad"]))
    for node, ops in reading.ops.items():
        for op in ops:
            args = pytree.tree_map_only(Node, number, (op.args, op.kwargs))
            price = ops_of_nodes([op])
            line = (number(op), op.target, str(args), value(op.meta["val"]), op.meta["needs_grad"], price, kept(op))
            found.append(line)
        carriers = pytree.tree_map_only(Node, number, reading.values[node])
        found.append((node.name, str(carriers), value(reading.fakes[node])))
    return found


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(replay, "_TEMPLATES", {})


def graph_of(emit, *shapes, grad=True):
    """A graph of torch functions, and inputs for it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    graph = Graph()
    graph.output(emit(graph, *(graph.placeholder(f"x{n}") for n in range(len(shapes)))))
    with FakeTensorMode():
        inputs = [torch.randn(shape).requires_grad_(grad) for shape in shapes]
    return GraphModule(torch.nn.Module(), graph), inputs


def assert_same(gm, inputs):
    assert described(replayed(gm, inputs), gm) == described(read(gm, inputs), gm)


def test_candidates_are_replayed_as_they_are_read(monkeypatch):
    seen = []

    def both(gm, inputs):
        found = replayed(gm, inputs)
        assert described(found, gm) == described(read(gm, inputs), gm)
        seen.append(sum(map(len, found.ops.values())))
        return found

    monkeypatch.setattr(candidates, "replayed", both)
    warnings.simplefilter("ignore")
    for seed in range(12):
        for _ in range(2):  # traced, and from memory
            compare(program(seed), seed)
    assert len(seen) > 40 and replay._TEMPLATES


def test_an_op_is_traced_once(monkeypatch):
    reads = []
    monkeypatch.setattr(replay, "read", lambda *args: reads.append(args) or read(*args))

    def emit(g, a, b):
        return g.call_function(torch.mm, (g.call_function(torch.mm, (a, b)), b))

    for _ in range(3):
        assert_same(*graph_of(emit, (3, 3), (3, 3)))
    assert len(reads) == 1


def test_a_graph_of_many_unknown_ops_is_read_as_a_whole_and_remembered(monkeypatch):
    reads = []
    monkeypatch.setattr(replay, "read", lambda *args: reads.append(args) or read(*args))

    def emit(g, a):
        for n in range(8):
            a = g.call_function(torch.mul, (a, n + 2))
        return a

    for _ in range(3):
        assert_same(*graph_of(emit, (3, 3)))
    assert len(reads) == replay._FEW + 1 and len(replay._TEMPLATES) == 8


@pytest.mark.parametrize(
    "emit",
    [
        lambda g, a: g.call_function(torch.reshape, (a, [2, 12])),
        lambda g, a: g.call_function(torch.reshape, (g.call_function(torch.permute, (a, [1, 0, 2])), [3, 8])),
        lambda g, a: g.call_method("contiguous", (g.call_method("contiguous", (a,)),)),
        lambda g, a: g.call_function(torch.stack, ([a, a],)),
        lambda g, a: g.call_function(torch.einsum, ("abc,adc->bd", a, a)),
        lambda g, a: g.call_function(torch.mul, (a, 2)),
        lambda g, a: g.call_function(torch.mul, (a, 2.0)),
        lambda g, a: g.call_function(torch.split, (a, 2), {"dim": 1}),
        lambda g, a: g.call_function(torch.narrow, (a, 0, 1, 1)),
    ],
)
def test_ops(emit):
    gm, inputs = graph_of(emit, (2, 3, 4))
    assert_same(gm, inputs)
    assert_same(gm, inputs)


def test_a_tensor_that_is_read_twice_is_no_two_tensors():
    assert_same(*graph_of(lambda g, a, b: g.call_function(torch.mm, (a, a)), (3, 3), (3, 3)))
    assert_same(*graph_of(lambda g, a, b: g.call_function(torch.mm, (a, b)), (3, 3), (3, 3)))
    assert_same(*graph_of(lambda g, a, b: g.call_function(torch.mm, (b, a)), (3, 3), (3, 3)))


def test_two_names_of_a_tensor_are_not_remembered_as_one(monkeypatch):
    monkeypatch.setattr(replay, "_FEW", 0)  # each graph is read as a whole

    def one(g, a, b):
        return g.call_function(torch.add, (a, g.call_method("contiguous", (a,))))

    def two(g, a, b):
        return g.call_function(torch.add, (a, g.call_method("contiguous", (b,))))

    for emit in (one, two, one, two):
        assert_same(*graph_of(emit, (3, 3), (3, 3)))


def test_gradients_and_layouts_are_told_apart():
    def emit(g, a):
        return g.call_function(torch.reshape, (g.call_function(torch.relu, (a,)), [12]))

    for grad in (True, False):
        gm, inputs = graph_of(emit, (3, 4), grad=grad)
        assert_same(gm, inputs)
        assert_same(gm, [inputs[0].t().contiguous().t()])
        with torch.no_grad():
            assert_same(gm, inputs)


def test_what_writes_is_read():
    gm, inputs = graph_of(lambda g, a: g.call_method("add_", (g.call_function(torch.relu, (a,)), 1)), (3, 4))
    assert_same(gm, inputs)
    assert None in replay._TEMPLATES.values()


def test_it_does_not_remember_without_end(monkeypatch):
    monkeypatch.setattr(replay, "_MOST", 5)
    for n in range(2, 12):
        assert_same(*graph_of(lambda g, a: g.call_function(torch.mul, (a, 2)), (n, 2)))
    assert len(replay._TEMPLATES) <= 5


def test_what_is_remembered_keeps_no_compilation_alive():
    """Nor does anything else: Parameters may be swapped, for which torch wants no weak reference to them."""
    model = torch.nn.Sequential(torch.nn.Linear(12, 12, bias=False), torch.nn.Linear(12, 2, bias=False))
    fast = ce_fx.optimize(model, (torch.randn(48, 12),), objective="flops", tune=False)
    assert ce_fx.report(fast).count("rewritten") == 1 and replay._TEMPLATES
    for _ in range(2):  # a tensor that C++ holds lets go of its cycle in the first
        gc.collect()
    assert not any(weakref.getweakrefs(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("alone", [True, False])
def test_what_needs_a_gradient_keeps_its_strides(alone, monkeypatch):
    """A repeated or gappy tensor is read as such, whether its op is traced alone or with the graph that it is in."""
    monkeypatch.setattr(replay, "_FEW", 3 if alone else 0)
    gm, inputs = graph_of(lambda g, x: g.call_function(torch.reshape, (x, [1, 3, 2])), (3, 1))
    with inputs[0].fake_mode:
        for x in (inputs[0].expand(3, 2), torch.randn(6, 4, requires_grad=True)[::2, ::2]):
            (result,) = [fake for node, fake in replayed(gm, [x]).fakes.items() if node.target is torch.reshape]
            assert result.stride()[1:] == x.stride() and result.requires_grad
            assert_same(gm, [x])
