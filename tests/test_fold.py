"""`fold=True`: computed once, up to date after every change that can be seen, never under gradients."""

import copy
import pickle
import re
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import ce_fx
from ce_fx import fold
from tests.models import factorized_conv


class Standardised(nn.Module):
    """A convolution by a weight of mean 0 and variance 1: no planner can do without the kernel."""

    def __init__(self, channels=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.register_buffer("scale", torch.rand(channels))

    def forward(self, x):
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        kernel = centred / centred.std((1, 2, 3), keepdim=True) * self.scale[:, None, None, None]
        return torch.relu(F.conv2d(x, kernel, padding=1))


class Rebuilt(nn.Module):
    """A convolution whose kernel is put together in every call."""

    def __init__(self, channels=4, rank=3):
        super().__init__()
        self.t = nn.Parameter(torch.randn(channels, rank))
        self.s = nn.Parameter(torch.randn(rank, channels))
        self.k = nn.Parameter(torch.randn(rank, 3, 3))

    def forward(self, x):
        return F.conv2d(x, torch.einsum("tr,rs,rhw->tshw", self.t, self.s, self.k).tanh(), padding=1)


class Lora(nn.Module):
    """A linear layer with a low-rank change of its weight, added up in every call, over the channels."""

    def __init__(self, channels=4, rank=2):
        super().__init__()
        self.base = nn.Linear(channels, channels)
        self.down = nn.Parameter(torch.randn(rank, channels))
        self.up = nn.Parameter(torch.randn(channels, rank))

    def forward(self, x):
        weight = self.base.weight + 0.5 * (self.up @ self.down)
        return F.linear(x.movedim(1, -1), F.normalize(weight, dim=1), self.base.bias).movedim(-1, 1)


def tensorly():
    return factorized_conv(4, 4, implementation="reconstructed", bias=True)


MODELS = [Standardised, Rebuilt, Lora, tensorly]


@pytest.fixture
def net():
    return Standardised().double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 4, 6, 6, dtype=torch.float64)


@pytest.fixture
def made(monkeypatch):
    """A list that grows by one whenever folded values are computed."""
    times = []
    values = fold.Fold._values

    def counting(self, sources):
        times.append(self)
        return values(self, sources)

    monkeypatch.setattr(fold.Fold, "_values", counting)
    return times


def optimize(model, *args, **options):
    return ce_fx.optimize(model, *args, fold=True, **options)


def same(fast, model, *args):
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args))


def kept(fast):
    return [each.running.fold.kept for each in fast._ce_fx_session.compiled if each.running.fold is not None]


@pytest.mark.parametrize("inner", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", MODELS)
def test_computed_once_over_many_calls(make, inner, x, made):
    net = make().double().eval()
    keys = list(net.state_dict())
    fast = optimize(net, inner=inner)
    for _ in range(5):
        same(fast, net, x)
    assert len(made) == 1
    (note,) = [note for note in ce_fx.report(fast).notes if note.startswith("fold")]
    assert re.fullmatch(
        r"fold: (1 weight-only value|\d weight-only values) \(.*B\) (is|are) computed once and kept", note
    )
    (gm,) = ce_fx.graph_modules(fast)
    assert gm.graph.find_nodes(op="placeholder")[-1].name.startswith("folded_")
    assert list(fast.state_dict()) == list(net.state_dict()) == keys
    assert len(list(fast.parameters())) == len(list(net.parameters())) and not list(fast.buffers())[1:]
    net.load_state_dict({key: value * 1.5 for key, value in net.state_dict().items()})
    same(fast, net, x)
    assert len(made) == 2


def numpy_view(net):
    net.weight.detach().numpy()[0] *= -1


def dlpack_view(net):
    torch.from_dlpack(net.weight.detach()).add_(torch.rand(4, 4, 3, 3))


def in_place(net):
    with torch.no_grad():
        net.weight[0].mul_(-1)


def a_buffer(net):
    net.scale.mul_(2)


def optimiser(kind, **options):
    def step(net):
        net.weight.grad = torch.randn_like(net.weight)
        kind([net.weight], 0.1, **options).step()

    return step


def load(assign):
    return lambda net: net.load_state_dict({k: torch.rand_like(v) for k, v in net.state_dict().items()}, assign=assign)


def other_data(net):
    net.weight.data = torch.randn_like(net.weight)


def same_memory_transposed(net):
    net.weight.data = net.weight.data.transpose(0, 1)


def other_memory(net):
    with torch.no_grad():
        net.weight.set_(torch.randn_like(net.weight))


def new_parameter(net):
    net.weight = nn.Parameter(torch.randn_like(net.weight))


def vector(net):
    vector_to_parameters(parameters_to_vector(net.parameters()) * torch.rand(144, dtype=torch.float64), [net.weight])


SEEN = {
    "in place": in_place,
    "a buffer in place": a_buffer,
    "init": lambda net: nn.init.normal_(net.weight),
    "SGD": optimiser(torch.optim.SGD),
    "fused SGD": optimiser(torch.optim.SGD, fused=True),
    "fused Adam": optimiser(torch.optim.Adam, fused=True),
    "foreach AdamW": optimiser(torch.optim.AdamW, foreach=True),
    "load_state_dict": load(False),
    "load_state_dict(assign=True)": load(True),
    ".data = ": other_data,
    ".data = a view": same_memory_transposed,
    "set_": other_memory,
    "a new Parameter": new_parameter,
    "vector_to_parameters": vector,
}

UNSEEN = {
    ".data.add_": lambda net: net.weight.data.add_(torch.rand(4, 4, 3, 3)),
    ".data.copy_": lambda net: net.weight.data.copy_(torch.randn(4, 4, 3, 3)),
    "a NumPy view": numpy_view,
    "a DLPack view": dlpack_view,
    "untyped_storage().copy_": lambda net: net.weight.untyped_storage().copy_(
        torch.randn_like(net.weight).untyped_storage()
    ),
}


@pytest.mark.parametrize("change", SEEN.values(), ids=SEEN)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_ways_of_changing_weights_that_are_seen(change, mode, net, x, made):
    view = optimize(net)
    with mode():
        before = view(x)
    change(view)
    net.weight, net.scale = view.weight, view.scale  # a Parameter that a view is given is its own
    with mode():
        after, expected = view(x), net(x)
    torch.testing.assert_close(after, expected)
    assert not torch.equal(before, after)
    with mode():
        view(x)
    assert len(made) <= 3  # the first call, after the change, and if need be for another graph


@pytest.mark.parametrize("change", UNSEEN.values(), ids=UNSEEN)
class TestWaysThatLeaveNoTrace:
    def test_refresh(self, change, net, x):
        fast = optimize(net)
        same(fast, net, x)
        change(net)
        with torch.no_grad():
            assert not torch.allclose(fast(x), net(x)), "it is seen after all: move it to SEEN, and say so in API.md"
        ce_fx.refresh(fast)
        same(fast, net, x)

    def test_a_call_with_gradients(self, change, net, x):
        fast = optimize(net)
        same(fast, net, x)
        fast(x).sum().backward()
        assert kept(fast) == [None]
        change(net)
        same(fast, net, x)

    def test_a_flip_of_the_mode(self, change, net, x):
        fast = optimize(net)
        same(fast, net, x)
        fast.train()
        assert kept(fast) == [None]
        change(net)
        fast.eval()
        same(fast, net, x)


def test_eval_without_a_flip_keeps(net, x, made):
    fast = optimize(net)
    for _ in range(3):
        fast.eval()
        same(fast, net, x)
    assert len(made) == 1


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_training_between_evaluations(make, kind, x):
    model, twin = make().double(), make().double()
    twin.load_state_dict(model.state_dict())
    fast = optimize(model)
    optimisers = [kind(m.parameters(), 1e-3, fused=True) for m in (fast, twin)]
    for _ in range(3):
        for m, o in zip((fast, twin), optimisers, strict=True):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
        for a, b in zip(fast.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        same(fast, twin, x)


def test_the_original_may_be_trained(net, x):
    fast = optimize(net)
    same(fast, net, x)
    net(x).sum().backward()
    torch.optim.Adam(net.parameters(), 0.1, fused=True).step()
    same(fast, net, x)


def test_an_optimiser_of_others_drops_nothing(net, x, made):
    fast, other = optimize(net), Rebuilt().double()
    for _ in range(3):
        same(fast, net, x)
        other(x).sum().backward()
        torch.optim.SGD(other.parameters(), 0.1, fused=True).step()
    assert len(made) == 1


def test_a_compiled_optimiser(net, x):
    fast = optimize(net)
    same(fast, net, x)
    sgd = torch.optim.SGD([net.weight], 0.1)
    net.weight.grad = torch.randn_like(net.weight)
    torch.compile(sgd.step, backend="aot_eager")()
    same(fast, net, x)


def test_gradients_never_meet_a_folded_value(net, x, made):
    fast = optimize(net)
    same(fast, net, x)
    gradients = [torch.autograd.grad(m(x).square().sum(), net.weight) for m in (fast, net)]
    torch.testing.assert_close(*gradients)
    assert len(made) == 1 and kept(fast) == [None]
    fast = optimize(net, (x,))  # compiled with gradients: nothing to fold
    assert kept(fast) == [] and any("while gradients are recorded" in note for note in ce_fx.report(fast).notes)
    (run,) = made
    net.weight.grad = None
    run(*_inputs_of(run, net, x))[0].sum().backward()  # called by hand with gradients on
    assert net.weight.grad is not None and run.kept is None


def _inputs_of(run, net, x):
    """The inputs of a graph by their shapes."""
    by_shape = {tensor.shape: tensor for tensor in (net.weight, net.scale, x)}
    names = run.run.__self__.graph.find_nodes(op="placeholder")[: -run.count]
    return [by_shape[node.meta["example_value"].shape] for node in names]


def test_another_dtype_releases_the_old_values(net, x):
    fast = optimize(net)
    same(fast, net, x)
    fast.float()
    same(fast, net, x.float())
    assert [entry is None for entry in kept(fast)] == [True, False]
    fast.double()
    same(fast, net, x)


def test_new_weights_release_the_old_ones(net, x):
    fast = optimize(net)
    same(fast, net, x)
    (entry,) = kept(fast)
    gone = [weakref.ref(entry.sources[0]), weakref.ref(entry.values[0])]
    del entry
    fast.weight = net.weight = nn.Parameter(torch.randn_like(net.weight))
    same(fast, net, x)
    assert [reference() for reference in gone] == [None, None]
    (entry,) = kept(fast)
    gone = weakref.ref(entry.values[0])
    del entry
    ce_fx.refresh(fast)
    assert gone() is None


def test_a_batch_of_any_size(net, made):
    fast = optimize(net, dynamic=True)
    for size in (2, 3, 5, 7):
        same(fast, net, torch.randn(size, 4, 6, 6, dtype=torch.float64))
    assert len(made) == 1
    fast = optimize(net)
    for size in (2, 3, 5, 2, 1, 3):
        same(fast, net, torch.randn(size, 4, 6, 6, dtype=torch.float64))


def test_statistics_that_a_training_graph_writes(x):
    """A batch norm's statistics change without a new version, under no_grad as well."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            if self.training:
                return self.norm(x)
            scale = torch.rsqrt(self.norm.running_var + 1e-5) * self.norm.weight
            return F.conv2d(x, (self.weight * scale)[:, :, None, None])

    net = Net().double().eval()
    fast = optimize(net)
    same(fast, net, x)
    assert kept(fast)[0] is not None
    for child in (net, net.norm):
        child.training = True  # no call of `train`
    fast.training = True
    with torch.no_grad():
        fast(x * 3)
    net.training = net.norm.training = fast.training = False
    same(fast, net, x)


def test_a_value_that_is_handed_out_may_be_written_to(net):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            dense = self.weight.exp()
            return x @ dense, dense.t()

    net, x = Net(), torch.randn(2, 4)
    fast = optimize(net)
    with torch.no_grad():
        fast(x)[1].zero_()
    with torch.no_grad():
        for a, b in zip(fast(x), net(x), strict=True):
            torch.testing.assert_close(a, b)


def test_random_steps_are_drawn_anew(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return torch.einsum("bshw,st->bthw", x, F.dropout(self.weight.exp(), 0.5, True))

    fast = optimize(Net().double())
    with torch.no_grad():
        assert not torch.equal(fast(x), fast(x))


def test_autocast(x):
    net = Rebuilt().eval()
    fast = optimize(net)
    for enabled in (False, True, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            result, expected = fast(x.float()), net(x.float())
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result, expected, rtol=1e-2 if enabled else 1e-5, atol=0.2 if enabled else 1e-4)


def test_weights_made_in_inference_mode_are_not_kept(x, made):
    with torch.inference_mode():
        net = Standardised().double().eval()
        fast = optimize(net)
        for _ in range(2):
            torch.testing.assert_close(fast(x), net(x))
            net.weight.mul_(-1)
    assert len(made) == 2 and kept(fast) == [None]


def test_values_made_in_inference_mode_serve_elsewhere(net, x, made):
    fast = optimize(net)
    with torch.inference_mode():
        fast(x)
    same(fast, net, x)
    assert not any(value.is_inference() for entry in kept(fast) if entry for value in entry.values)


def test_copies_start_empty(net, x):
    fast = optimize(net)
    same(fast, net, x)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert twin._ce_fx_session.options.fold and twin._ce_fx_session.compiled == []
        with torch.no_grad():
            twin.weight.mul_(-1)
        assert not torch.equal(twin.weight, net.weight)
        plain = Standardised().double()
        plain.load_state_dict(twin.state_dict())
        same(twin, plain, x)
        same(fast, net, x)


def test_in_place_twin(net, x, made):
    reference = copy.deepcopy(net)
    ce_fx.optimize_(net, fold=True)
    same(net, reference, x)
    for model in (net, reference):
        model.weight.data.neg_()
    ce_fx.refresh(net)
    same(net, reference, x)
    assert len(made) == 2
    ce_fx.restore_(net)
    with pytest.raises(ce_fx.CeFxError, match="Standardised was not optimised"):
        ce_fx.refresh(net)


def test_threads(net, x):
    fast = optimize(net)
    same(fast, net, x)
    with torch.no_grad():
        expected = net(x)
    wrong = []

    def serve():
        for _ in range(50):
            with torch.no_grad():
                if not torch.allclose(fast(x), expected):
                    wrong.append(1)

    workers = [threading.Thread(target=serve) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(20):
        ce_fx.refresh(fast)
    for worker in workers:
        worker.join()
    assert not wrong


class TestBackend:
    """`torch.compile(model, backend="ce_fx", options={"fold": True})`."""

    def compiled(self, net, inner="eager"):
        return torch.compile(net, backend="ce_fx", options={"fold": True, "inner": inner})

    @pytest.mark.parametrize("inner", ["eager", "aot_eager"])
    def test_the_same(self, net, x, made, inner):
        fast = self.compiled(net, inner)
        same(fast, net, x)
        same(fast, net, x)
        assert len(made) == 1
        in_place(net)
        same(fast, net, x)
        net.weight.data.neg_()
        ce_fx.refresh(fast)
        same(fast, net, x)
        assert len(made) == 3

    def test_a_call_with_gradients_drops(self, net, x, made):
        fast = self.compiled(net)
        same(fast, net, x)
        fast(x)
        assert made[0].kept is None
        net.weight.data.neg_()
        same(fast, net, x)

    def test_a_module_compiled_in_place(self, net, x):
        reference = copy.deepcopy(net)
        net.compile(backend="ce_fx", options={"fold": True, "inner": "eager"})
        same(net, reference, x)
        for model in (net, reference):
            model.weight.data.neg_()
        ce_fx.refresh(net)
        same(net, reference, x)

    def test_two_models_of_one_class_share_a_graph(self, net, x):
        other = Standardised().double().eval()
        first, second = self.compiled(net), self.compiled(other)
        for _ in range(2):
            same(first, net, x)
            same(second, other, x)


def test_fake_inputs_are_not_read(net, x):
    """Under DDP a backend sees fake tensors only; nothing is computed before the first call."""
    from torch._dynamo.utils import detect_fake_mode

    seen = []

    def inner(gm, inputs):
        seen.append(detect_fake_mode(inputs))
        return gm.forward

    def backend(gm, inputs):
        mode = detect_fake_mode([n.meta["example_value"] for n in gm.graph.find_nodes(op="placeholder")])
        fakes = [mode.from_tensor(value) for value in inputs]
        running = fold.run_folded(gm, fakes, ce_fx.options.Options(fold=True, inner=inner))
        assert running.fold.kept is None
        return running.call

    fast = torch.compile(net, backend=backend)
    same(fast, net, x)
    assert seen and seen[0] is not None


def test_static_inputs_stay_static(net, x):
    """CUDA graphs would copy every weight in each replay if one more input had hidden them."""
    from torch._functorch._aot_autograd.frontend_utils import _try_get_metadata_from_dynamo

    found = []

    def inner(gm, inputs):
        found.append((len(inputs), _try_get_metadata_from_dynamo(gm, {}.keys(), len(inputs), [])[1]))
        return gm.forward

    for folding in (False, True):
        with torch.no_grad():
            ce_fx.optimize(net, (x,), inner=inner, fold=folding)
    assert [count for count, _ in found] == [3, 4]
    assert found[0][1] == found[1][1] and len(found[0][1]) == 2


def test_distributed(net, x, tmp_path, monkeypatch, made):
    """DDP's own splitter hands fake tensors to the backend."""
    import torch.distributed as dist

    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 64)  # two buckets of two small layers
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(net, Rebuilt().double()).eval()
        ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1e-4)
        fast = torch.compile(ddp, backend="ce_fx", options={"fold": True, "inner": "aot_eager"})
        for _ in range(2):
            same(fast, model, x)
        assert len(set(made)) == 2, "one for each bucket"
        assert all(run.kept is not None for run in made)
        before = len(made)
        same(fast, model, x)
        assert len(made) == before
        fast(x).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1, fused=True).step()
        same(fast, model, x)
    finally:
        dist.destroy_process_group()


def test_another_backend_that_fails_on_the_rest_gets_the_graph(net, x):
    def inner(gm, inputs):
        if any("folded" in node.name for node in gm.graph.nodes):
            raise ValueError("no such inputs")
        return gm.forward

    fast = optimize(net, inner=inner)
    same(fast, net, x)
    assert kept(fast) == []
    assert any("nothing to fold" in note for note in ce_fx.report(fast).notes)


def test_the_pure_pass_leaves_weight_only_steps(net, x):
    gm = torch.fx.symbolic_trace(net)
    out = ce_fx.rewrite(gm, (x,), fold=True)
    assert [n.name for n in out.graph.find_nodes(op="placeholder")] == ["x"]
    torch.testing.assert_close(out(x), net(x))


def test_refresh_takes_optimised_models_only(net):
    with pytest.raises(ce_fx.CeFxError, match=r"call ce_fx.optimize\(model\) first"):
        ce_fx.refresh(net)
    with pytest.raises(ce_fx.CeFxError, match="function was not optimised"):
        ce_fx.refresh(lambda x: x)
    ce_fx.refresh(ce_fx.optimize(net))  # without fold there is nothing to do
