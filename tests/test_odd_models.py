"""Odd models: Python control flow, odd inputs and outputs, hooks, parametrisations, shared parts, changing state.

Each is run as a view and by the registered backend, beside an untouched copy of itself: values, gradients of parameters
and of inputs, buffers and the type of what comes out are those of the copy.
"""

import copy
import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import ce_fx

OPTIONS = {"objective": "flops", "tune": False}
Pair = namedtuple("Pair", "low high")


@dataclasses.dataclass
class Result:
    """What a model returns."""

    y: torch.Tensor
    loss: torch.Tensor | None = None
    steps: int = 0


class Chain(nn.Module):
    """`x @ a @ b`, whose written order costs more than `x @ (a @ b)` on many rows."""

    def __init__(self, size=12, out=2):
        super().__init__()
        self.a = nn.Parameter(torch.randn(size, size) / size**0.5)
        self.b = nn.Parameter(torch.randn(size, out) / size**0.5)

    def forward(self, x):
        return x @ self.a @ self.b


class Odd(nn.Module):
    """A chain back to the size of its input, for the models below to call."""

    def __init__(self, out=12):
        super().__init__()
        self.chain = Chain(out=out)
        self.back = Chain(out=out)

    def step(self, x):
        return torch.tanh(self.chain(x))


def linears(out=2):
    return nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, out, bias=False))


def view(model):
    return ce_fx.optimize(model, **OPTIONS)


def backend(model):
    return torch.compile(model, backend="ce_fx", options={"inner": "eager", **OPTIONS})


@pytest.fixture(params=[view, backend], ids=["view", "backend"])
def via(request):
    return request.param


@pytest.fixture
def x():
    return torch.randn(48, 12, dtype=torch.float64)


def leaves(value):
    """The tensors of a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return leaves([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return leaves(list(value.values()))
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (list, tuple)) else []


def shape_of(value):
    """A result with its tensors left out: types, keys, numbers."""
    if isinstance(value, torch.Tensor):
        return "tensor"
    if dataclasses.is_dataclass(value):
        return type(value), [shape_of(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return type(value), [(key, shape_of(item)) for key, item in value.items()]
    return (type(value), [shape_of(item) for item in value]) if isinstance(value, (list, tuple)) else value


def trainable(args):
    return [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]


def same(fast, model, twin, *args, call=None, **kwargs):
    """One call and its backward of a model and of its copy; `call` runs them in another way than by their call."""
    call = call or (lambda run, *args, **kwargs: run(*args, **kwargs))
    ours, theirs = trainable(args), trainable(args)
    got, expected = call(fast, *ours, **kwargs), call(twin, *theirs, **kwargs)
    assert shape_of(got) == shape_of(expected)
    torch.testing.assert_close(leaves(got), leaves(expected))
    for result in (got, expected):
        sum(leaf.square().sum() for leaf in leaves(result)).backward()
    grads = [[a.grad for a in leaves(side)] for side in (ours, theirs)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(
        {name: p.grad for name, p in model.named_parameters()}, {name: p.grad for name, p in twin.named_parameters()}
    )
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
    for module in (model, twin):
        module.zero_grad()
    return got


def is_view(fast):
    """Whether a report can be asked for: not of what the registered backend compiled."""
    return not isinstance(fast, torch._dynamo.OptimizedModule)


def assert_rewritten(fast, least=1):
    if is_view(fast):
        report = ce_fx.report(fast)
        assert report.count("rewritten") >= least and report.mismatches == 0, str(report)


def breaks(fast):
    return [note for note in ce_fx.report(fast).notes if "graph break" in note]


def assert_captured_whole(fast):
    assert not is_view(fast) or not breaks(fast)


def assert_break_is_named(fast):
    assert not is_view(fast) or breaks(fast)


class Branching(Odd):
    def forward(self, x):
        y = self.step(x)
        if x.sum() > 0:
            y = self.back(y) + 1
        return y


def test_control_flow_on_data(via, x):
    model = Branching().double()
    twin, fast = copy.deepcopy(model), via(model)
    for inputs in (x.abs(), -x.abs(), x.abs()):
        same(fast, model, twin, inputs)
    assert_rewritten(fast, 2)
    assert_break_is_named(fast)


@pytest.mark.xfail(strict=True, reason="the report counts graphs; it does not say what broke them, nor where")
def test_where_the_graph_broke_is_named(x):
    fast = view(Branching().double())
    fast(x)
    assert any("test_odd_models.py" in note or "data-dependent" in note.lower() for note in ce_fx.report(fast).notes)


class Stopping(nn.Module):
    """A loop over layers that is left early, by the data: Dynamo runs the loop as written, and captures the layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Chain(out=12), Chain(out=12), Chain(out=12)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if x.abs().max() < 0.1:
                break
        return x


def test_a_loop_that_stops_on_data(via, x):
    model = Stopping().double()
    twin, fast = copy.deepcopy(model), via(model)
    for inputs in (x, x / 100, x):
        ours, theirs = fast(inputs), twin(inputs)
        torch.testing.assert_close(ours, theirs)
        grads = [torch.autograd.grad(y.sum(), m.layers[0].a)[0] for y, m in ((ours, model), (theirs, twin))]
        torch.testing.assert_close(*grads)
    assert_rewritten(fast)


@pytest.mark.xfail(strict=True, reason="a frame that Dynamo skips leaves one frame captured, and so no note")
def test_a_loop_that_stops_on_data_is_named(x):
    fast = view(Stopping().double())
    fast(x)
    assert_break_is_named(fast)


class Block(nn.Module):
    """A chain, and a graph break after it."""

    def __init__(self, out):
        super().__init__()
        self.chain = Chain(out=out)

    def forward(self, x):
        y = self.chain(x)
        torch._dynamo.graph_break()
        return torch.tanh(y)


def test_blocks_that_break_the_graph(via, x):
    model = nn.Sequential(Block(12), Block(2)).double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)
    assert_break_is_named(fast)


def test_every_block_that_breaks_the_graph_is_in_the_report(x):
    fast = view(nn.Sequential(Block(12), Block(2)).double())
    with torch.no_grad():
        fast(x)
    expected = sum(2 * 48 * 12 * (12 + out) for out in (12, 2))
    assert ce_fx.report(fast).flops_before == expected and ce_fx.report(fast).count("rewritten") == 2


class Disabled(Odd):
    @torch._dynamo.disable
    def forward(self, x):
        return self.step(x)


def test_a_model_that_is_not_captured_at_all(via, x):
    model = Disabled().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert not is_view(fast) or not ce_fx.graph_modules(fast)


@pytest.mark.xfail(strict=True, reason="no graph reaches the session: no note, and repr says 'not captured yet'")
def test_a_model_that_is_not_captured_at_all_says_so(x):
    fast = view(Disabled().double())
    fast(x)
    assert ce_fx.report(fast).notes and "not captured yet" not in repr(fast)


def test_printing_in_between(via, x, capsys):
    class Net(Odd):
        def forward(self, x):
            y = self.step(x)
            print("mean", y.mean().item() > 2)
            return self.back(y)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert capsys.readouterr().out == "mean False\n" * 2
    assert_rewritten(fast, 2)
    assert_break_is_named(fast)


def test_a_generator_in_forward(via, x):
    class Net(Odd):
        def states(self, x):
            for chain in (self.chain, self.back):
                x = torch.tanh(chain(x))
                yield x

        def forward(self, x):
            return torch.cat([*self.states(x)]) + sum(state.sum() for state in self.states(x))

    model = Net(12).double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_model_that_returns_a_generator(via, x):
    class Net(Odd):
        def forward(self, x):
            return (torch.tanh(chain(x)) for chain in (self.chain, self.back))

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x, call=lambda run, x: list(run(x)))


def test_args_and_kwargs(via, x):
    class Net(Odd):
        def forward(self, *args, scale=1.0, **kwargs):
            y = sum(self.step(x) for x in args)
            for name in sorted(kwargs):
                y = y + self.back(kwargs[name])
            return y * scale

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    same(fast, model, twin, x, x + 1, scale=2.0)
    same(fast, model, twin, x, x + 1, other=x - 1, more=x * 2)
    assert_rewritten(fast, 3)
    assert_captured_whole(fast)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_dict_comes_out(via, x, kind):
    class Net(Odd):
        def forward(self, x):
            y = self.step(x)
            return kind([("y", y), ("more", {"z": [self.back(y), None], "n": 3})])

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_dataclass_comes_out(via, x):
    class Net(Odd):
        def forward(self, x, target=None):
            y = self.step(x)
            return Result(y, None if target is None else (self.back(y) - target).square().mean(), steps=2)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    same(fast, model, twin, x, x + 1)
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_dataclass_goes_in(via, x):
    class Net(Odd):
        def forward(self, given):
            return dataclasses.replace(given, y=self.step(given.y), steps=given.steps + 1)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x, call=lambda run, x: run(Result(x, steps=4)))
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_a_namedtuple_comes_out(via, x):
    class Net(Odd):
        def forward(self, x):
            y = self.step(x)
            return Pair(low=y, high=Pair(self.back(y), 1))

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    assert same(fast, model, twin, x).high.high == 1
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


@pytest.mark.parametrize("where", ["root", "chain"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "forward_kwargs", "full_backward", "full_backward_pre"])
def test_hooks_that_change_values_and_are_removed(via, x, where, kind):
    hooks = {
        "forward": ("register_forward_hook", lambda module, args, y: y * 2, {}),
        "forward_pre": ("register_forward_pre_hook", lambda module, args: (args[0] + 1,), {}),
        "forward_kwargs": (
            "register_forward_hook",
            lambda module, args, kw, y: y - args[0].mean(),
            {"with_kwargs": True},
        ),
        "full_backward": ("register_full_backward_hook", lambda module, ins, outs: tuple(g * 3 for g in ins), {}),
        "full_backward_pre": ("register_full_backward_pre_hook", lambda module, outs: tuple(g * 3 for g in outs), {}),
    }
    register, hook, options = hooks[kind]
    model = nn.Sequential(OrderedDict(chain=Chain(), act=nn.Tanh())).double()
    twin = copy.deepcopy(model)
    handles = [getattr(m if where == "root" else m.chain, register)(hook, **options) for m in (model, twin)]
    fast = via(model)
    with_hook = same(fast, model, twin, x)
    for handle in handles:
        handle.remove()
    without = same(fast, model, twin, x)
    assert torch.equal(with_hook, without) is ("backward" in kind)
    assert_rewritten(fast)


def test_a_hook_that_is_registered_after_the_first_call(via, x):
    """Dynamo guards on hooks where it is asked to; by default it does not, whatever the backend."""
    model = nn.Sequential(OrderedDict(chain=Chain(), act=nn.Tanh())).double()
    twin, fast = copy.deepcopy(model), via(model)
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        before = same(fast, model, twin, x)
        handles = [m.chain.register_forward_hook(lambda module, args, y: y * 2) for m in (model, twin)]
        assert not torch.equal(same(fast, model, twin, x), before)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(same(fast, model, twin, x), before)
    assert_rewritten(fast)


def test_a_hook_between_two_products_stays_between_them(via, x):
    """What stands between is seen by the hook; the products may not become one without it."""
    model = linears().double()
    seen = []
    model[0].register_forward_hook(lambda module, args, y: seen.append(y.detach().clone()))
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert len(seen) == 2
    torch.testing.assert_close(*seen)


def test_a_gradient_hook_on_a_parameter(via, x):
    model = Chain().double()
    twin = copy.deepcopy(model)
    for m in (model, twin):
        m.a.register_hook(lambda grad: grad * 2)
    fast = via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_weight_norm(via, x):
    model, twin = linears().double(), linears().double()
    for m in (model, twin):  # a copy would share the class that holds the weight
        parametrizations.weight_norm(m[0])
    twin.load_state_dict(model.state_dict())
    fast = via(model)
    for inputs in (x, x * 2):
        same(fast, model, twin, inputs)
    assert_rewritten(fast)
    assert_captured_whole(fast)
    for m in (model, twin):
        parametrize.remove_parametrizations(m[0], "weight")
    same(fast, model, twin, x)
    assert type(model[0]) is nn.Linear
    assert_rewritten(fast)


@pytest.mark.parametrize("mode", ["train", "eval", "train then eval"])
def test_spectral_norm(via, x, mode):
    """In training every call moves the vectors of the power iteration, by one step as written."""
    model = linears().double()
    parametrizations.spectral_norm(model[0])
    model.train("train" in mode)
    twin, fast = copy.deepcopy(model), via(model)
    u = model[0].parametrizations.weight[0]._u.clone()
    for inputs in (x, x * 2):
        same(fast, model, twin, inputs)
    assert torch.equal(u, model[0].parametrizations.weight[0]._u) is (mode == "eval")
    if "then" in mode:
        for m in (fast, model, twin):
            m.eval()
        same(fast, model, twin, x)
    assert_rewritten(fast)


class LoRA(nn.Module):
    """A weight plus a product of two thin ones."""

    def __init__(self, rows, columns, rank=2):
        super().__init__()
        self.up = nn.Parameter(torch.randn(rows, rank) / 4)
        self.down = nn.Parameter(torch.randn(rank, columns) / 4)

    def forward(self, weight):
        return weight + self.up @ self.down


@pytest.mark.parametrize("frozen", [False, True])
def test_lora_as_a_parametrization(via, x, frozen):
    model = linears()
    model[0].weight.requires_grad_(not frozen)
    parametrize.register_parametrization(model[0], "weight", LoRA(12, 12))
    model.double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    with torch.no_grad():
        for m in (model, twin):
            m[0].parametrizations.weight[0].up.mul_(2)
    same(fast, model, twin, x)
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_a_parametrization_that_is_cached(via, x):
    model = linears()
    parametrize.register_parametrization(model[0], "weight", LoRA(12, 12))
    model.double()
    twin, fast = copy.deepcopy(model), via(model)

    def cached(run, x):
        with parametrize.cached():
            return run(x) + run(x + 1)

    same(fast, model, twin, x, call=cached)
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_a_shared_sub_module(via, x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = Chain(out=12)
            self.b = nn.Parameter(torch.randn(12, 2))

        def forward(self, x):
            return self.second(self.first(x)) @ self.b, torch.tanh(self.first(x) @ self.b)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert fast.first is fast.second is model.first
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_tied_weights(via, x):
    """One embedding, read at the bottom and multiplied by at the top."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 12)
            self.body = linears(out=12)
            self.head = nn.Linear(12, 20, bias=False)
            self.head.weight = self.embedding.weight
            self.body[1].weight = self.body[0].weight

        def forward(self, tokens):
            return self.head(self.body(torch.tanh(self.embedding(tokens))))

    model, tokens = Net().double(), torch.arange(240).reshape(12, 20) % 20
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, call=lambda run: run(tokens))
    assert len(dict(fast.named_parameters())) == 2
    with torch.no_grad():
        for m in (model, twin):
            m.head.weight.mul_(2)
    same(fast, model, twin, call=lambda run: run(tokens))
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_a_loop_over_a_module_list(via, x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Chain(out=12) for _ in range(3))
            self.head = nn.Parameter(torch.randn(12, 1))
            self.skip = None

        def forward(self, x):
            for n, layer in enumerate(self.layers):
                x = x if n == self.skip else torch.tanh(layer(x))
            return self.layers[-1](x) @ self.head

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    for m in (model, twin):
        m.layers.append(Chain(out=12).double())
    twin.layers[-1].load_state_dict(model.layers[-1].state_dict())
    same(fast, model, twin, x)
    for m in (model, twin):
        del m.layers[0]
    same(fast, model, twin, x)
    assert_rewritten(fast, 3)
    assert_captured_whole(fast)


def test_a_module_dict_chosen_by_a_string(via, x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({"thin": Chain(out=1), "wide": Chain(out=6)})
            self.extra = nn.ParameterDict({"thin": torch.ones(1), "wide": torch.ones(6)})

        def forward(self, x, head=None):
            if head is not None:
                return self.heads[head](x) * self.extra[head]
            return {name: torch.tanh(each(x)) for name, each in self.heads.items()}

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for head in ("thin", "wide", None, "thin"):
        same(fast, model, twin, x, head=head)
    with pytest.raises(Exception, match="other"):
        fast(x, head="other")
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_lazy_linears(via, x):
    model = nn.Sequential(nn.LazyLinear(12, bias=False), nn.LazyLinear(2, bias=False), nn.Tanh()).double()
    fast = via(model)
    fast(x)
    assert type(model[0]) is nn.Linear and model[0].weight.shape == (12, 12)
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    assert [p.grad for p in model.parameters()] == [None, None]
    assert_rewritten(fast)


def test_lazy_convolutions(via):
    first = nn.LazyConv2d(16, 1, bias=False)
    model = nn.Sequential(first, nn.LazyConv2d(4, 3, padding=1, bias=False), nn.ReLU()).double()
    images = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    fast = via(model)
    with torch.no_grad():
        fast(images)
    assert type(model[0]) is nn.Conv2d
    twin = copy.deepcopy(model)
    same(fast, model, twin, images)
    assert_rewritten(fast)


def test_lazy_modules_and_a_view_made_with_inputs(x):
    model = nn.Sequential(nn.LazyLinear(12, bias=False), nn.LazyLinear(2, bias=False)).double()
    fast = ce_fx.optimize(model, (x,), **OPTIONS)
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)


class LazyChain(nn.modules.lazy.LazyModuleMixin, Chain):
    """A chain whose size is that of its first input."""

    cls_to_become = Chain

    def __init__(self, out=2):
        super().__init__(0, 0)
        self.out = out
        self.a, self.b = nn.UninitializedParameter(), nn.UninitializedParameter()

    def initialize_parameters(self, x):
        if self.has_uninitialized_params():
            with torch.no_grad():
                self.a.materialize((x.shape[-1], x.shape[-1]))
                self.b.materialize((x.shape[-1], self.out))
                self.a.normal_()
                self.b.normal_()


def test_a_lazy_module_inside(via, x):
    model = nn.Sequential(LazyChain(), nn.Tanh()).double()
    fast = via(model)
    fast(x)
    assert type(model[0]) is Chain
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_a_lazy_module_as_the_model(x):
    model = LazyChain().double()
    fast = view(model)
    fast(x)
    twin = Chain().double()
    twin.load_state_dict(model.state_dict())
    same(fast, model, twin, x)
    torch.testing.assert_close(model(x), twin(x))
    assert isinstance(fast, Chain)
    assert_rewritten(fast)


def test_a_lazy_module_as_the_model_stays_a_view(x):
    fast = view(LazyChain().double())
    fast(x)
    twin = copy.deepcopy(fast)
    torch.testing.assert_close(twin(x), fast(x))
    assert "FLOPs" in repr(fast)
    assert ce_fx.report(twin).count("rewritten") == 1


class Counting(Odd):
    """Counts its calls, and does something else at every third."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.step(x)
        return self.back(y) if self.calls % 3 == 0 else y * self.calls


def test_a_python_counter(via, x):
    model = Counting().double()
    twin, fast = copy.deepcopy(model), via(model)
    for n in range(1, 8):
        same(fast, model, twin, x)
        assert fast.calls == twin.calls == n
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_many_counts_end_in_the_model_as_written(x):
    """Dynamo gives up on a number that never comes again; the values stay right."""
    model = Counting().double()
    twin, fast = copy.deepcopy(model), view(model)
    for _ in range(12):
        same(fast, model, twin, x)
    assert fast.calls == twin.calls == 12
    assert len(ce_fx.graph_modules(fast)) == torch._dynamo.config.recompile_limit


@pytest.mark.xfail(strict=True, reason="the report is that of the last graph, also when Dynamo no longer runs any")
def test_a_model_that_dynamo_gave_up_on_says_so(x):
    fast = view(Counting().double())
    for _ in range(12):
        fast(x)
    assert ce_fx.report(fast).notes


def test_a_counter_in_a_buffer(via, x):
    class Net(Odd):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.register_buffer("mean", torch.zeros(12))

        def forward(self, x):
            self.count += 1
            y = self.step(x)
            with torch.no_grad():
                self.mean.lerp_(y.mean(0), 0.1)
            return self.back(y) - self.mean

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for _ in range(4):
        same(fast, model, twin, x)
    assert model.count == 4
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_list_that_grows(via, x):
    class Net(Odd):
        def __init__(self):
            super().__init__()
            self.kept = []

        def forward(self, x):
            y = self.step(x)
            self.kept.append(y.detach())
            return self.back(y)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for n in range(1, 4):
        same(fast, model, twin, x)
        assert len(model.kept) == len(twin.kept) == n
        torch.testing.assert_close(model.kept, twin.kept)


def test_a_flag_that_is_flipped(via, x):
    class Net(Odd):
        def __init__(self):
            super().__init__()
            self.deep = False
            self.config = {"scale": 1.0}

        def forward(self, x):
            y = self.step(x) * self.config["scale"]
            return self.back(y) if self.deep else y

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    for deep, scale in ((False, 1.0), (True, 1.0), (False, 3.0), (True, 3.0), (False, 1.0)):
        for m in (fast, twin):
            m.deep = deep
        for m in (model, twin):
            m.config["scale"] = scale
        same(fast, model, twin, x)
    assert_rewritten(fast)
    assert_captured_whole(fast)


class Branchless(Odd):
    def forward(self, x):
        return self.back(self.step(x))


def test_attributes_are_of_each_object_and_those_of_sub_modules_of_both(x):
    model = nn.Sequential(Counting()).double()
    twin, fast = copy.deepcopy(model), view(model)
    same(fast, model, twin, x)
    assert model[0].calls == fast[0].calls == 1
    model.note, fast.remark = 1, 2
    assert not hasattr(fast, "note") and not hasattr(model, "remark")


def test_a_child_is_replaced(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    model.chain = Chain(out=12).double()
    twin.chain = copy.deepcopy(model.chain)
    same(fast, model, twin, x)
    model.chain = nn.Sequential(linears(12), nn.ReLU()).double()
    twin.chain = copy.deepcopy(model.chain)
    same(fast, model, twin, x)
    model.chain, twin.chain = nn.Identity(), nn.Identity()
    same(fast, model, twin, x)
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_a_child_of_the_view_is_replaced(x):
    model = Branchless().double()
    fast = view(model)
    twin = copy.deepcopy(model)
    same(fast, model, twin, x)
    fast.chain = Chain(out=12).double()
    twin.chain = copy.deepcopy(fast.chain)
    same(fast, fast, twin, x)
    assert fast.chain is model.chain


def test_a_forward_that_is_replaced(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    for m in (model, twin):
        m.chain.forward = lambda x, chain=m.chain: x @ chain.b @ chain.a
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_inference_mode_in_float32(via, x):
    model = nn.Sequential(Chain(out=12), nn.Tanh(), Chain())
    twin, fast = copy.deepcopy(model), via(model)
    with torch.inference_mode():
        got, expected = fast(x.float()), twin(x.float())
    assert got.dtype == torch.float32 and got.is_inference() and expected.is_inference()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert_rewritten(fast, 2)
    for m in (model, twin):
        m.double()
    same(fast, model, twin, x)
    with torch.inference_mode():
        inference = x.clone()
        torch.testing.assert_close(fast(inference), twin(inference))
    with torch.no_grad():
        torch.testing.assert_close(fast(inference), twin(inference))


def test_functional_call(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    prefix = "" if via is view else "_orig_mod."
    weights = {name: (value * 2).detach() for name, value in model.named_parameters()}

    def total(run, prefix, weights, x):
        named = {prefix + name: value for name, value in weights.items()}
        return torch.func.functional_call(run, named, (x,)).square().sum()

    same(fast, model, twin, x)
    got = torch.func.grad(total, 2)(fast, prefix, weights, x)
    expected = torch.func.grad(total, 2)(twin, "", weights, x)
    original = torch.func.grad(total, 2)(model, "", weights, x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(original, expected)
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_functional_call_with_some_of_the_weights(x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), view(model)
    weights = {"chain.a": torch.randn(12, 12, dtype=torch.float64)}
    for _ in range(2):
        got, expected = (torch.func.functional_call(m, weights, (x,)) for m in (fast, twin))
        torch.testing.assert_close(got, expected)
        same(fast, model, twin, x)
    assert_rewritten(fast)


def test_vmap_over_a_function_that_calls_the_model(via, x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), via(model)
    batch = torch.stack([x, x + 1, x * 2])

    def called(run):
        return lambda x, scale: run(x * scale) + x.sum()

    scales = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    same(fast, model, twin, batch, call=lambda run, batch: torch.func.vmap(called(run))(batch, scales))
    same(fast, model, twin, x, call=lambda run, x: torch.func.vmap(called(run), (None, 0))(x, scales))
    same(fast, model, twin, x)


def test_an_ensemble_by_vmap_over_weights(x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), view(model)
    weights = {name: torch.stack([value, value * 2]).detach() for name, value in model.named_parameters()}

    def ensemble(m):
        return torch.func.vmap(lambda weights: torch.func.functional_call(m, weights, (x,)))(weights)

    torch.testing.assert_close(ensemble(fast), ensemble(twin))
    same(fast, model, twin, x)


def test_derivatives_per_sample(x):
    model = Branchless().double()
    twin, fast = copy.deepcopy(model), view(model)
    jacobians = [torch.func.vmap(torch.func.jacrev(lambda row, m=m: m(row[None])[0]))(x[:3]) for m in (fast, twin)]
    torch.testing.assert_close(*jacobians)
    tangent = torch.ones_like(x)
    for got, expected in zip(*(torch.func.jvp(m, (x,), (tangent,)) for m in (fast, twin)), strict=True):
        torch.testing.assert_close(got, expected)


def test_inputs_that_are_no_tensors(via, x):
    class Net(Odd):
        def forward(self, x, mask=None, mode="tanh", repeat=1, shape=(), flags=None):
            for _ in range(repeat):
                x = self.step(x) if mode == "tanh" else self.chain(x) @ self.back.a
            if mask is not None:
                x = x * mask
            if flags and flags.get("deep"):
                x = self.back(x)
            return x.reshape(shape) if shape else x

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    same(fast, model, twin, x, None, "linear", 2)
    same(fast, model, twin, x, None, "linear", 3, (6, 8, 12))
    same(fast, model, twin, x, (x > 0).double(), "tanh", repeat=2, flags={"deep": True})
    same(fast, model, twin, x, mode="other", shape=[24, 24], flags={"deep": False})
    assert_rewritten(fast)
    assert_captured_whole(fast)


class Encoder(Odd):
    def encode(self, x):
        return self(x) * 2

    def embed(self, x):
        return self.forward(x) + 1

    def forward(self, x):
        return self.back(self.step(x))


def test_a_method_that_calls_the_model(x):
    model = Encoder().double()
    twin, fast = copy.deepcopy(model), view(model)
    same(fast, model, twin, x, call=lambda m, x: m.encode(x))
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)
    same(fast, model, twin, x, call=lambda m, x: m.embed(x))
    same(fast, model, twin, x, call=lambda m, x: m.forward(x))


def test_a_view_inside_another_model(via, x):
    inner = Encoder().double()
    model = nn.Sequential(OrderedDict(inner=inner, act=nn.Tanh(), head=Chain())).double()
    twin, nested = copy.deepcopy(model), copy.copy(model)
    nested._modules = dict(model._modules, inner=view(inner))
    same(nested, model, twin, x)
    assert_rewritten(nested.inner, 2)
    fast = via(nested)
    same(fast, model, twin, x)


def test_a_model_that_calls_itself(via, x):
    class Net(Odd):
        def forward(self, x, depth=2):
            return self.back(x) if depth == 0 else self(self.step(x), depth - 1) + x

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    same(fast, model, twin, x, 1)
    assert_rewritten(fast)


def test_an_exception_that_a_model_catches(via, x):
    class Net(Odd):
        def forward(self, x):
            try:
                return self.chain(x) @ self.missing
            except AttributeError:
                return self.back(self.step(x))

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)


def test_an_exception_that_a_model_raises(via, x):
    class Net(Odd):
        def forward(self, x):
            y = self.step(x)
            if x.shape[0] > 50:
                raise ValueError(f"{x.shape[0]} rows are too many")
            return self.back(y)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    with pytest.raises(ValueError, match="64 rows are too many"):
        fast(torch.randn(64, 12, dtype=torch.float64))
    same(fast, model, twin, x)
    assert_rewritten(fast)


class Exact(Odd):
    def forward(self, x):
        return self.step(x) if type(self) is Exact else self.back(x)


def test_a_model_that_asks_for_its_exact_class(x):
    model = Exact().double()
    compiled = backend(model)
    same(compiled, model, copy.deepcopy(model), x)


@pytest.mark.xfail(
    strict=True, reason="the class of a view is a subclass, so that `type(self) is Exact` is False in it"
)
def test_a_view_of_a_model_that_asks_for_its_exact_class(x):
    model = Exact().double()
    same(view(model), model, copy.deepcopy(model), x)


class Bound(Odd):
    """Keeps one of its own methods, bound, as an attribute."""

    def __init__(self):
        super().__init__()
        self.run = self.moded

    def moded(self, x):
        return self.back(self.step(x)) if self.training else self.step(x)

    def forward(self, x):
        return self.run(x)


def test_a_method_that_is_kept_as_an_attribute(via, x):
    model = Bound().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    for m in (model, twin):
        m.eval()
    same(fast, model, twin, x)
    assert_rewritten(fast)


@pytest.mark.xfail(strict=True, reason="a method bound to the original reads the mode of the original, not of the view")
def test_a_method_that_is_kept_as_an_attribute_follows_the_mode_of_the_view(x):
    model = Bound().double()
    twin, fast = copy.deepcopy(model), view(model)
    fast.eval()
    twin.eval()
    same(fast, model, twin, x)


class Registered(Odd):
    """Its sub-classes are kept by a key that they must give."""

    kinds = {}

    def __init_subclass__(cls, *, key, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.kinds[key] = cls


class First(Registered, key="first"):
    def forward(self, x):
        return self.back(self.step(x))


def test_a_class_that_registers_its_sub_classes(x):
    model = First().double()
    same(backend(model), model, copy.deepcopy(model), x)
    assert Registered.kinds == {"first": First}


def test_a_view_of_a_class_that_registers_its_sub_classes(x):
    model = First().double()
    same(view(model), model, copy.deepcopy(model), x)
    assert Registered.kinds == {"first": First}
