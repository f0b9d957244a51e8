"""`fold=True` under `torch.compile(model, backend="ce_fx")`, and over other backends."""

import copy

import pytest
import torch
from torch import nn

import ce_fx
from ce_fx import fold
from tests.fold.models import Rebuilt, Standardised, kept, optimize, same


def in_place(net):
    with torch.no_grad():
        net.weight[0].mul_(-1)


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
