"""`fold=True`: computed once, up to date after every change that can be seen, never under gradients."""

import re
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import ce_fx
from tests.fold.models import MODELS, Rebuilt, kept, optimize, same


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


def test_another_memory_format(net, x):
    fast = optimize(net)
    same(fast, net, x)
    fast.to(memory_format=torch.channels_last)
    same(fast, net, x)
    same(fast, net, x.to(memory_format=torch.channels_last))


def test_the_backend_drops_nothing_of_a_changed_module(net, x):
    """What `torch.compile` gives is the model itself: its flips and changes are the model's."""
    fast = torch.compile(net, backend="ce_fx", options={"fold": True, "inner": "eager", "tune": False})
    same(fast, net, x)
    fast.train()
    net.weight.data.mul_(-1)
    fast(x).sum().backward()
    fast.eval()
    same(fast, net, x)
    with torch.no_grad():
        net.weight.mul_(-1)
    same(fast, net, x)


def test_merged_adapters_after_refresh(x):
    """PEFT merges by `.data`, which leaves no trace; see `examples/plot_3_peft_lora.py`."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["0"], r=2, lora_alpha=4, init_lora_weights=False)
    model = peft.get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), config).double().eval()
    fast = optimize(model)
    with torch.no_grad():
        expected = model(x)
        for change in (model.merge_adapter, model.unmerge_adapter):
            torch.testing.assert_close(fast(x), expected)
            change()
            ce_fx.refresh(fast)
            torch.testing.assert_close(fast(x), expected)


@pytest.mark.parametrize("make", MODELS)
def test_what_is_kept_is_no_more_than_twice_the_kernel_or_the_largest_leaf(make, x):
    net = make().double().eval()
    fast = optimize(net)
    same(fast, net, x)
    held = sum(value.numel() for entry in kept(fast) for value in entry.values)
    dense = 4 * 4 * (1 if make.__name__ == "Lora" else 9)
    leaves = [weight.numel() for weight in (*net.parameters(), *net.buffers())]
    assert 0 < held <= 2 * max(dense, *leaves)
