"""DDP and FSDP2 in two processes: what is optimised trains as what is written, whichever is wrapped first."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import ce_fx
from ce_fx import fold
from tests.backend_rows import rows_of_the_backend
from tests.train.nets import EXACT, OPTIONS, backward, batch, loss_of, net, rewritten, same, train
from tests.train.pair import on_two

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

BACKEND = {"backend": "ce_fx", "options": {"inner": "aot_eager", **OPTIONS}}
SMALL = {"bucket_cap_mb": 0.01}


def ranked(model, n, size=4, **kwargs):
    """A step of training in which every process has data of its own."""
    return backward(loss_of(model, batch(n, dist.get_rank(), size), **kwargs))


def ddp(model, **options):
    return DistributedDataParallel(model, **{**SMALL, **options})


def optimised_inside(**options):
    fast = ce_fx.optimize(net(), **OPTIONS)
    return ddp(fast, **options), lambda: rewritten(fast)


def optimised_in_place_inside(**options):
    model = net()
    ce_fx.optimize_(model, **OPTIONS)
    return ddp(model, **options), lambda: rewritten(model)


def optimised_around(**options):
    fast = ce_fx.optimize(ddp(net(), **options), **OPTIONS)
    return fast, lambda: rewritten(fast)


def by_the_backend(**options):
    return torch.compile(ddp(net(), **options), **BACKEND), None


def compiled_inside(**options):
    return ddp(torch.compile(net(), **BACKEND), **options), None


DOORS = {
    "DDP(optimize(model))": optimised_inside,
    "DDP(optimize_(model))": optimised_in_place_inside,
    "optimize(DDP(model))": optimised_around,
    "torch.compile(DDP(model), backend='ce_fx')": by_the_backend,
    "DDP(torch.compile(model, backend='ce_fx'))": compiled_inside,
}


def trains(door, options, step=ranked, steps=3):
    """A run through a door, compared with DDP alone."""
    expected = train(ddp(net(), **options), step=step, steps=steps)
    with rows_of_the_backend() as rows:
        model, report = DOORS[door](**options)
        same(train(model, step=step, steps=steps), expected)
    found = report() if report else [row for row in rows if row.decision == "rewritten"]
    assert {row.name.split(".")[0] for row in found} == {"first", "second"}


def with_unused(model, n):
    """The second block is left out in both processes, then in one of them, then in none."""
    return ranked(model, n, both=n > 1 - dist.get_rank())


@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("door", DOORS)
def test_ddp(door, unused, tmp_path):
    on_two(trains, tmp_path, door, {"find_unused_parameters": unused}, with_unused if unused else ranked)


def accumulated(model, n):
    """Gradients of two batches, of which the first is not sent."""
    with model.no_sync():
        ranked(model, 2 * n)
    return ranked(model, 2 * n + 1)


@pytest.mark.parametrize("door", [door for door in DOORS if "compile" not in door])
def test_ddp_accumulates_gradients(door, tmp_path):
    on_two(trains, tmp_path, door, {}, accumulated, 2)


@pytest.mark.parametrize("door", ["DDP(optimize(model))", "optimize(DDP(model))"])
def test_ddp_of_a_static_graph_in_one_bucket(door, tmp_path):
    on_two(trains, tmp_path, door, {"static_graph": True, "bucket_cap_mb": 25})


def uneven(model, n):
    """A last batch of another size in one process: sizes become symbolic there and not in the other."""
    return ranked(model, n, size=3 if n == 1 and dist.get_rank() == 1 else 4)


@pytest.mark.parametrize("door", ["DDP(optimize(model))", "optimize(DDP(model))"])
def test_ddp_with_a_last_partial_batch(door, tmp_path):
    on_two(trains, tmp_path, door, {}, uneven)


def reports_buckets():
    for split in (True, False):
        torch._dynamo.reset()
        with torch._dynamo.config.patch(optimize_ddp=split):
            fast = ce_fx.optimize(net(), **OPTIONS)
            train(ddp(fast), step=ranked, steps=1)
        report = ce_fx.report(fast)
        assert any("DDP split a graph" in note for note in report.notes) is split
        assert (len(ce_fx.graph_modules(fast)) > 1) is split
        # All buckets are in the report, not the last one alone: every convolution that is written is in a row.
        convolutions = sum(p.numel() for name, p in fast.named_parameters() if p.dim() == 4)
        assert report.flops_before >= 2 * 4 * 9 * 9 * convolutions
        assert {row.name.split(".")[0] for row in rewritten(fast)} == {"first", "second"}


def test_a_report_holds_all_buckets_of_ddp(tmp_path):
    on_two(reports_buckets, tmp_path)


def shards_the_optimiser():
    def optimiser(parameters):
        return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=0.01)

    fast = ce_fx.optimize(net(), **OPTIONS)
    same(train(ddp(fast), optimiser, step=ranked), train(ddp(net()), optimiser, step=ranked))
    assert rewritten(fast)


def test_an_optimiser_whose_state_is_sharded(tmp_path):
    on_two(shards_the_optimiser, tmp_path)


def copies_and_saves():
    """A copy of a view of DDP is captured anew and trains alike; a checkpoint of it has DDP's keys."""
    fast = ce_fx.optimize(ddp(net()), **OPTIONS)
    twin = copy.deepcopy(fast)
    file = io.BytesIO()
    torch.save(fast.state_dict(), file)
    file.seek(0)
    expected = train(ddp(net()), step=ranked)
    same(train(fast, step=ranked), expected)
    same(train(twin, step=ranked), expected)
    assert rewritten(fast) and rewritten(twin)
    plain = ddp(net())
    plain.load_state_dict(torch.load(file))
    same(train(plain, step=ranked), expected)


def test_copies_and_checkpoints_of_a_view_of_ddp(tmp_path):
    on_two(copies_and_saves, tmp_path)


def sharded(model, **options):
    """FSDP2 as its tutorials write it: every block, then what is left."""
    mesh = init_device_mesh("cpu", (2,))
    for name in ("first", "second"):
        fully_shard(getattr(model, name), mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def optimised_blocks(model, **options):
    model.first, model.second = (ce_fx.optimize(block, **OPTIONS) for block in (model.first, model.second))
    return sharded(model, **options), lambda: [rewritten(model.first), rewritten(model.second)]


def optimised_blocks_in_place(model, **options):
    for block in (model.first, model.second):
        ce_fx.optimize_(block, **OPTIONS)
    return sharded(model, **options), lambda: [rewritten(model.first), rewritten(model.second)]


def optimised_sharded_blocks(model, **options):
    """The model around finds that its blocks are sharded already, views that they are."""
    mesh = init_device_mesh("cpu", (2,))
    for name in ("first", "second"):
        block = fully_shard(getattr(model, name), mesh=mesh, **options)
        setattr(model, name, ce_fx.optimize(block, **OPTIONS))
    fully_shard(model, mesh=mesh, **options)
    return model, lambda: [rewritten(model.first), rewritten(model.second)]


def optimised_around_shards(model, **options):
    """The hooks of FSDP2 break the graph around every block; blocks of one class share theirs."""
    fast = ce_fx.optimize(sharded(model, **options), **OPTIONS)
    return fast, lambda: [rewritten(fast)]


def sharded_as_a_whole(model, **options):
    """One group of parameters, gathered before the one graph runs."""
    fast = ce_fx.optimize(model, **OPTIONS)
    fully_shard(fast, mesh=init_device_mesh("cpu", (2,)), **options)
    return fast, lambda: [rewritten(fast), ce_fx.graph_modules(fast)[1:] == []]


def shards_by_the_backend(model, **options):
    return torch.compile(sharded(model, **options), **BACKEND), None


def shards_and_blocks_by_the_backend(model, **options):
    for block in (model.first, model.second):
        block.compile(**BACKEND)
    return sharded(model, **options), None


SHARDS = {
    "fully_shard(optimize(block))": optimised_blocks,
    "fully_shard(optimize_(block))": optimised_blocks_in_place,
    "optimize(fully_shard(block))": optimised_sharded_blocks,
    "optimize(fully_shard(model))": optimised_around_shards,
    "fully_shard(optimize(model))": sharded_as_a_whole,
    "torch.compile(fully_shard(model), backend='ce_fx')": shards_by_the_backend,
    "fully_shard(block.compile(backend='ce_fx'))": shards_and_blocks_by_the_backend,
}


def trains_in_shards(door, options, step=ranked):
    """A run through a door, compared with FSDP2 alone."""
    written = train(sharded(net(), **options), step=step)
    with rows_of_the_backend() as rows:
        model, report = SHARDS[door](net(), **options)
        same(train(model, step=step), written)
    assert all(report() if report else [[row for row in rows if row.decision == "rewritten"]])


@pytest.mark.parametrize("door", SHARDS)
def test_fsdp(door, tmp_path):
    on_two(trains_in_shards, tmp_path, door, {})


@pytest.mark.parametrize("door", ["fully_shard(optimize(block))", "optimize(fully_shard(model))"])
def test_fsdp_that_keeps_what_it_gathers(door, tmp_path):
    on_two(trains_in_shards, tmp_path, door, {"reshard_after_forward": False})


def trains_in_bfloat16(door):
    """What runs is in bfloat16: two orders of evaluation differ by its rounding, and only by that."""
    options = {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)}

    def step(model, n):
        return backward((model(batch(n).float()).float() - batch(n).float()).square().mean())

    models = [net().float(), net().float()]
    for model in models:
        model.norm = nn.Identity()  # of a batch norm torch has no kernel for bfloat16 with statistics in float32
    written = train(sharded(models[0], **options), step=step)
    model, report = SHARDS[door](models[1], **options)
    same(train(model, step=step), written, rtol=0.05, atol=0.005)
    assert all(report())
    assert model(batch().float()).dtype == torch.bfloat16


@pytest.mark.parametrize("door", ["fully_shard(optimize(block))", "optimize(fully_shard(model))"])
def test_fsdp_in_mixed_precision(door, tmp_path):
    on_two(trains_in_bfloat16, tmp_path, door)


def gathers_late(model, n):
    model.set_requires_gradient_sync(False)
    ranked(model, 2 * n)
    model.set_requires_gradient_sync(True)
    return ranked(model, 2 * n + 1)


@pytest.mark.parametrize("door", ["fully_shard(optimize(block))", "optimize(fully_shard(model))"])
def test_fsdp_accumulates_gradients(door, tmp_path):
    """Methods of FSDP2 are there on a view of what is sharded."""
    on_two(trains_in_shards, tmp_path, door, {}, gathers_late)


def checkpoints_shards():
    """Blocks are recomputed in the backward, gathered again, and their graphs with them."""
    model = net()
    views = [ce_fx.optimize(block, **OPTIONS) for block in (model.first, model.second)]
    model.first, model.second = map(checkpoint_wrapper, views)
    plain = net()
    plain.first, plain.second = checkpoint_wrapper(plain.first), checkpoint_wrapper(plain.second)
    same(train(sharded(model), step=ranked), train(sharded(plain), step=ranked))
    assert all(map(rewritten, views))


def test_fsdp_with_activation_checkpointing(tmp_path):
    on_two(checkpoints_shards, tmp_path)


def saves_shards():
    """A full state goes out of a view and into one, by torch's own functions, under the keys of the model."""
    options = StateDictOptions(full_state_dict=True)
    fast = ce_fx.optimize(sharded(net()), **OPTIONS)
    expected = train(sharded(net()), step=ranked)
    same(train(fast, step=ranked), expected)
    state = get_model_state_dict(fast, options=options)
    if dist.get_rank() == 0:
        names = [name for kind in (fast.named_parameters, fast.named_buffers) for name, _ in kind()]
        assert list(state) == list(net().state_dict())
        torch.testing.assert_close([state[name] for name in names], expected.state, **EXACT)
    set_model_state_dict(fast, net().state_dict(), options=options)
    same(train(fast, step=ranked), expected)
    assert rewritten(fast)


def test_checkpoints_of_shards(tmp_path):
    on_two(saves_shards, tmp_path)


def folds_shards(door):
    """Weights are gathered in every call, maybe into the same memory, and their version stays: nothing is kept."""
    model = net().eval()
    if door == "inside":
        model.first = ce_fx.optimize(model.first, fold=True, **OPTIONS)
        model.second = ce_fx.optimize(model.second, fold=True, **OPTIONS)
        run = sharded(model)
        views = [model.first, model.second]
    else:
        run = ce_fx.optimize(sharded(model), fold=True, **OPTIONS)
        views = [run]
    plain = net().eval()
    x = batch(0)
    with torch.no_grad():
        for change in range(4):
            for _ in range(2):
                torch.testing.assert_close(run(x), plain(x), **EXACT)
            run.reshard()
            for each in (run, plain):
                for p in each.parameters():
                    p.mul_(1 + change / 10)
    assert not list(fold._HOLDING)
    for view in views:
        assert rewritten(view)
        assert any("nothing is kept while a module" in note for note in ce_fx.report(view).notes)


@pytest.mark.parametrize("door", ["inside", "around"])
def test_what_is_folded_of_shards_is_renewed(door, tmp_path):
    on_two(folds_shards, tmp_path, door)
