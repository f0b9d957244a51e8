"""The ATen reading of graphs: right ops, right owners, nothing real touched."""

import collections
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node, symbolic_trace

from ce_fx.capture.export import capture
from ce_fx.capture.reading import Reading, State, read

aten = torch.ops.aten


def graph_of(fn, *inputs, train=False, **compile_options):
    """Dynamo's graph of a function or module and its reading, made where a backend makes it."""
    found = []

    def backend(gm, example_inputs):
        found.append((gm, read(gm, example_inputs)))
        return gm.forward

    compiled = torch.compile(fn, backend=backend, **compile_options)
    with torch.set_grad_enabled(train):
        compiled(*inputs)
    (pair,) = found
    return pair


def names(reading, node):
    """The ATen ops of one own node, without `aten.` and the overload; switches of modes are no ops."""
    targets = [op.target for op in reading.ops.get(node, ())]
    return [t._schema.name.removeprefix("aten::") for t in targets if isinstance(t, torch._ops.OpOverload)]


def all_names(gm, reading):
    return [name for node in gm.graph.nodes for name in names(reading, node)]


def x_(*shape):
    return torch.randn(shape or (2, 3, 6, 6))


ONE_OP = {
    "conv2d": (lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3), padding=1, groups=1), ["conv2d"]),
    "einsum": (lambda x: torch.einsum("bchw,cd->bdhw", x, torch.ones(3, 5)), ["einsum"]),
    "transposed": (lambda x: x @ x.transpose(-1, -2), ["transpose", "matmul"]),
    "tensordot": (lambda x: torch.tensordot(x, torch.ones(6, 5), dims=1), ["tensordot"]),
    "kron": (lambda x: torch.kron(x, torch.ones(2, 2)), ["kron"]),
    "linear": (lambda x: F.linear(x, torch.ones(5, 6)), ["linear"]),
    "reshape": (lambda x: x.permute(0, 2, 3, 1).reshape(2, -1), ["permute", "reshape"]),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2), ["upsample_nearest2d"]),
    "indexing": (lambda x: x[:, 0, 1:, ::2], ["slice", "select", "slice", "slice"]),
    "unsqueezed": (lambda x: x[..., None, :], ["slice", "unsqueeze", "slice"]),
    "conv_transpose": (lambda x: F.conv_transpose2d(x, torch.ones(3, 4, 3, 3)), ["conv_transpose2d"]),
    "pool": (lambda x: F.avg_pool2d(x, 2), ["avg_pool2d"]),
    "sum": (lambda x: x.sum((2, 3)), ["sum"]),
    "cat": (lambda x: torch.cat([x, x], 1), ["cat"]),
}


@pytest.mark.parametrize("name", ONE_OP)
@pytest.mark.parametrize("train", [False, True])
def test_ops_stay_whole(name, train):
    fn, expected = ONE_OP[name]
    gm, reading = graph_of(fn, x_().requires_grad_(train), train=train)
    assert not reading.failures
    found = [n for n in all_names(gm, reading) if n not in ("ones", "alias", "detach")]
    if name in ("indexing", "unsqueezed"):
        found, expected = set(found) - {"slice"}, set(expected) - {"slice"}
    assert found == expected


def test_a_conv_net_in_training_reads_as_written_and_touches_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gm, x = symbolic_trace(net), x_()
    state = torch.get_rng_state()
    reading = read(gm, [x])
    assert not reading.failures
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None and not isinstance(p, FakeTensor) for p in net.parameters())
    assert all(not isinstance(b, FakeTensor) for b in net.buffers())
    found = {str(node.target): names(reading, node) for node in gm.graph.nodes}
    assert found["0"] == ["conv2d"]
    assert found["1"][-1] == "batch_norm"
    assert found["2"] == ["relu_"]
    assert found["3"] == ["dropout"]
    assert found["4"] == ["flatten"]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_a_dynamo_graph(training):
    net = nn.BatchNorm2d(3).train(training)
    seen = []

    def backend(gm, example_inputs):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        reading = read(gm, example_inputs)
        seen.append(all(torch.equal(before[k], v) for k, v in net.state_dict().items()))
        seen.append([op for op in all_names(gm, reading) if op == "batch_norm"])
        return gm.forward

    torch.compile(net, backend=backend)(x_())
    assert seen == [True, ["batch_norm"]]


def test_every_tensor_is_carried_by_an_aten_node_with_its_fake_value():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)
            self.register_buffer("scale", torch.ones(4, 1, 1))

        def forward(self, x):
            a, b = (self.conv(x) * self.scale).chunk(2, 1)
            return {"sum": a + b, "parts": (a, [b])}

    gm, reading = graph_of(Net(), x_())
    assert not reading.failures
    assert set(reading.values) == set(reading.fakes) == {n for n in gm.graph.nodes if n.op != "output"}
    inside = set(reading.graph.nodes)
    for node, value in reading.values.items():
        carriers = value if isinstance(value, tuple | list) else [value]
        fakes = reading.fakes[node] if isinstance(value, tuple | list) else [reading.fakes[node]]
        for carrier, fake in zip(carriers, fakes, strict=True):
            assert isinstance(carrier, Node) and carrier in inside
            assert isinstance(fake, FakeTensor)
            assert carrier.meta["val"].shape == fake.shape
            assert carrier.meta["val"].dtype == fake.dtype
    chunk = next(n for n in gm.graph.nodes if n.op == "call_method" and n.target == "chunk")
    assert [tuple(f.shape) for f in reading.fakes[chunk]] == [(2, 2, 4, 4)] * 2


def test_each_op_has_one_owner_in_order():
    gm, reading = graph_of(lambda x: torch.relu(x @ x.transpose(-1, -2)) + x.split(3, -1)[0].sum(), x_(1, 2, 6, 6))
    owned = [op for node in gm.graph.nodes for op in reading.ops.get(node, ())]
    assert len(owned) == len(set(owned))
    assert owned == [n for n in reading.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("split", [lambda x: x.split(2, 1), lambda x: x.unbind(1), lambda x: x.tensor_split(2, 1)])
def test_several_outputs(split):
    gm, reading = graph_of(lambda x: torch.mul(*split(x)[:2]), x_(2, 4, 3))
    assert not reading.failures
    getters = [n for n in gm.graph.nodes if n.target is operator.getitem]
    assert len(getters) == 2
    assert all(isinstance(reading.values[n], Node) for n in getters)
    many = reading.values[getters[0].args[0]]
    assert many[0] is reading.values[getters[0]] and many[1] is reading.values[getters[1]]


def test_writes_in_place_are_noted_by_storage():
    def fn(x):
        y = x * 2
        z = y[0]
        y += 1
        z.relu_()
        return y.sum() + torch.add(x, 1)

    gm, reading = graph_of(fn, x_())
    assert not reading.failures
    by_name = {n.name: n for n in gm.graph.nodes}
    y = Reading.storage(reading.fakes[by_name["y"]])
    x = Reading.storage(reading.fakes[next(n for n in gm.graph.nodes if n.op == "placeholder")])
    assert y is not None and y != x
    assert [key for _, key in reading.mutations] == [y, y]
    writers = [names(reading, node)[-1] for node, _ in reading.mutations]
    assert writers == ["add_", "relu_"]


def test_storage_tells_views_from_copies():
    gm, reading = graph_of(lambda x: (x.permute(1, 0).unsqueeze(0), x.clone(), x + 0), x_(2, 3))
    keys = collections.defaultdict(set)
    for node in gm.graph.nodes:
        if node in reading.fakes:
            keys[Reading.storage(reading.fakes[node])].add(node)
    assert sorted(len(group) for group in keys.values()) == [1, 1, 3]
    assert Reading.storage(3) is None


def test_copied_values_are_not_taken_for_their_source():
    """Parameters and inputs of one shape have memory of their own."""
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    gm = capture(net, (x_(3, 3),))
    reading = read(gm, [x_(3, 3)])
    sources = [n for n in gm.graph.nodes if n.op in ("get_attr", "placeholder")]
    assert len({Reading.storage(reading.fakes[n]) for n in sources}) == len(sources) == 3


def test_needs_grad_follows_the_modes():
    w = torch.ones(6, 5, requires_grad=True)

    def fn(x):
        a = x @ w
        b = x * 2
        with torch.no_grad():
            c = x @ w
        return a, b, c, a.detach()

    gm, reading = graph_of(fn, x_(), train=True)

    def needs(target):
        return [n.meta["needs_grad"] for n in reading.graph.nodes if n.target is target]

    assert needs(aten.matmul.default) == [True, False]
    assert needs(aten.mul.Tensor) == needs(aten.detach.default) == [False]
    assert [reading.states[n].grad for n in gm.graph.nodes if "matmul" in names(reading, n)] == [True, False]
    assert torch.is_grad_enabled()


def test_modes_inside_are_restored_after():
    def fn(x):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            y = x @ x
        return y + x

    gm, reading = graph_of(fn, x_(4, 4), train=True)
    states = {tuple(names(reading, n)): reading.states.get(n) for n in gm.graph.nodes}
    assert states["matmul",] == State(grad=False, autocast=(("cpu", torch.bfloat16),))
    assert states["add",] == State(grad=True)
    product = next(n for n in gm.graph.nodes if names(reading, n) == ["matmul"])
    assert reading.fakes[product].dtype is torch.bfloat16
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_autocast_inside_autocast():
    def fn(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a = x @ x
            with torch.autocast("cpu", enabled=False):
                b = x.mm(x)
            c = torch.einsum("ij,jk->ik", x, x)
        return a, b, c

    gm, reading = graph_of(fn, x_(4, 4))
    found = {
        names(reading, n)[0]: (reading.states[n].autocast, reading.fakes[n].dtype)
        for n in gm.graph.nodes
        if names(reading, n)
    }
    low, full = ((("cpu", torch.bfloat16),), torch.bfloat16), ((), torch.float32)
    assert found == {"matmul": low, "mm": full, "einsum": low}
    assert not reading.failures


def test_autocast_that_the_graph_never_leaves_ends_with_the_reading():
    graph = Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, None))
    y = graph.call_function(torch.matmul, (x, x))
    graph.output(y)
    reading = read(GraphModule(nn.Module(), graph), [x_(4, 4)])
    assert reading.states[y].autocast
    assert not torch.is_autocast_enabled("cpu")


def test_ambient_autocast_is_recorded_and_not_baked_in():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gm, reading = graph_of(lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3)).relu(), x_())
    found = all_names(gm, reading)
    assert "conv2d" in found and not {"_to_copy", "to"} & set(found)
    assert all(reading.states[n].autocast for n in gm.graph.nodes if n in reading.ops)


def test_symbolic_sizes():
    def fn(x, w):
        b, c, h, _ = x.shape
        y = F.conv2d(x, w, padding=1)
        return y.reshape(b, -1, h).sum(0, keepdim=True) * b

    gm, reading = graph_of(fn, x_(2, 3, 6, 5), x_(4, 3, 3, 3), dynamic=True)
    assert not reading.failures
    assert {"conv2d", "reshape", "sum"} <= set(all_names(gm, reading))
    symbols = [f for f in reading.fakes.values() if isinstance(f, torch.SymInt)]
    assert symbols
    conv = next(n for n in reading.graph.nodes if n.target is aten.conv2d.default)
    assert all(isinstance(size, torch.SymInt) for size in conv.meta["val"].shape[2:])


def test_arithmetic_of_symbolic_sizes_is_no_op():
    """`contiguous` of a contiguous tensor computes with its sizes and hands the tensor on."""
    gm, reading = graph_of(lambda x: x.contiguous().reshape(x.shape[0] * 2, -1) + 1, x_(4, 6), dynamic=True)
    assert all_names(gm, reading) == ["reshape", "add"]
    by_target = {str(n.target): n for n in gm.graph.nodes}
    (x,) = (n for n in gm.graph.nodes if n.op == "placeholder" and isinstance(reading.fakes[n], FakeTensor))
    assert reading.ops[by_target["contiguous"]] == ()
    assert reading.values[by_target["contiguous"]] is reading.values[x]


def test_a_number_taken_from_a_tensor_is_an_op():
    graph = Graph()
    x = graph.placeholder("x")
    y = graph.call_method("item", (graph.call_method("sum", (x,)),))
    graph.output(graph.call_function(torch.mul, (x, y)))
    reading = read(GraphModule(nn.Module(), graph), [x_(2, 2)])
    assert names(reading, y) == ["item"]
    assert isinstance(reading.fakes[y], torch.SymFloat)


def test_a_dynamic_batch_of_an_export():
    batch = torch.export.Dim("batch", min=2, max=64)
    gm = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (x_(),), dynamic_shapes=(({0: batch},)))
    reading = read(gm, [x_()])
    conv = next(n for n in reading.graph.nodes if n.target is aten.conv2d.default)
    assert isinstance(conv.meta["val"].shape[0], torch.SymInt)
    assert conv.meta["val"].shape[1:] == (4, 4, 4)


def test_hand_written_graphs_and_plain_attributes():
    graph = Graph()
    x = graph.placeholder("x")
    w = graph.get_attr("w")
    y = graph.call_function(torch.einsum, ("ij,jk->ik", x, w))
    z = graph.call_method("sum", (y,), {"dim": 0})
    graph.output(z)
    root = nn.Module()
    root.w = torch.ones(3, 4)
    gm = GraphModule(root, graph)
    reading = read(gm, [x_(2, 3)])
    assert not reading.failures
    assert names(reading, y) == ["einsum"] and names(reading, z) == ["sum"]
    assert reading.values[w].op == "placeholder"
    assert reading.ops[y][0].args[1] == [reading.values[x], reading.values[w]]
    assert reading.fakes[z].shape == (4,)
    assert type(gm.w) is torch.Tensor


def test_what_cannot_be_read_is_opaque_and_alone():
    def fn(x):
        y = torch.utils.checkpoint.checkpoint(lambda t: torch.relu(t @ t), x, use_reentrant=False)
        return (y * 2).sum(0)

    gm, reading = graph_of(fn, x_(4, 4).requires_grad_(), train=True)
    assert len(reading.failures) == 1
    ((node, reason),) = reading.failures.items()
    assert "opaque" in reason
    assert names(reading, node) == []
    assert {"mul", "sum"} <= set(all_names(gm, reading))
    mul = next(n for n in reading.graph.nodes if n.target is aten.mul.Tensor)
    assert mul.args[0].op == "placeholder" and mul.meta["needs_grad"]
    assert {own for own, _ in reading.mutations} == {node}


def test_an_op_that_raises_is_opaque_with_its_reason():
    def broken(x):
        raise ArithmeticError("no fake version")

    graph = Graph()
    x = graph.placeholder("x")
    y = graph.call_function(broken, (x,))
    z = graph.call_function(torch.relu, (y,))
    t = graph.call_function(torch.neg, (x,))
    graph.output((z, t))
    reading = read(GraphModule(nn.Module(), graph), [x_()])
    assert reading.failures[y] == "ArithmeticError: no fake version"
    assert z in reading.failures
    assert t not in reading.failures and names(reading, t) == ["neg"]

    y.meta["val"] = torch.zeros(2, 3, 6, 6)
    reading = read(GraphModule(nn.Module(), graph), [x_()])
    assert list(reading.failures) == [y]
    assert names(reading, y) == [] and names(reading, z) == ["relu"]
    assert reading.ops[z][0].args[0].op == "placeholder"


def test_a_deep_graph_costs_one_reading_of_each_node():
    """500 nodes: the ATen graph has as many calls, so the time is linear."""
    graph = Graph()
    node = graph.placeholder("x")
    for _ in range(250):
        node = graph.call_function(torch.mul, (node, 2))
        node = graph.call_function(torch.neg, (node,))
    graph.output(node)
    reading = read(GraphModule(nn.Module(), graph), [x_(2)])
    assert not reading.failures
    assert len([n for n in reading.graph.nodes if n.op == "call_function"]) == 500


def test_a_graph_is_read_twice_alike():
    gm = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    first, second = read(gm, [x_()]), read(gm, [x_()])
    assert str(first.graph) == str(second.graph)
    assert all("val" not in node.meta and "example_value" not in node.meta for node in gm.graph.nodes)


def test_a_float_of_dynamic_true_is_what_a_product_is_left_alone_for():
    class Net(torch.nn.Module):
        scale = 1.5

        def forward(self, x):
            return x @ x * self.scale

    graphs = []

    def backend(gm, inputs):
        graphs.append((gm, read(gm, inputs)))
        return gm.forward

    torch.compile(Net(), backend=backend, dynamic=True)(torch.randn(4, 4))
    ((gm, reading),) = graphs
    (mul,) = (node for node in gm.graph.nodes if "mul" in node.name and "matmul" not in node.name)
    assert reading.failures[mul].startswith("it computes with a float known only when it runs")
    assert reading.ops[mul] == ()


@pytest.mark.parametrize(
    "dropout, idle",
    [
        (lambda x: torch.nn.functional.dropout(x, 0.3, False), True),
        (lambda x: torch.nn.functional.dropout(x, 0.0), True),
        (lambda x: torch.dropout(x, 0.3, train=False), True),
        (lambda x: torch.ops.aten.dropout.default(x, 0.3, False), True),
        (lambda x: torch.ops.aten.dropout(x, 0.3, False), True),
        (lambda x: torch.nn.functional.dropout(x, 0.3), False),
        (lambda x: torch.ops.aten.dropout.default(x, 0.3, True), False),
    ],
)
def test_an_idle_dropout_gives_its_input_itself(dropout, idle):
    gm = torch.fx.symbolic_trace(dropout)
    x = torch.randn(3, 4)
    reading = read(gm, [x])
    given, (result,) = (gm.graph.find_nodes(op="placeholder")[0], gm.graph.output_node().all_input_nodes)
    shared = reading.storage(reading.fakes[given]) == reading.storage(reading.fakes[result])
    assert not reading.failures and shared == idle == (dropout(x).data_ptr() == x.data_ptr())


def test_an_idle_dropout_in_a_module_that_is_a_leaf_of_a_graph():
    class Leaf(nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, 0.3, False).add_(1)

    graph = torch.fx.Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    reading = read(torch.fx.GraphModule(nn.ModuleDict({"leaf": Leaf()}), graph), [torch.randn(3)])
    assert [storage for _, storage in reading.mutations] == [reading.storage(reading.fakes[next(iter(graph.nodes))])]
