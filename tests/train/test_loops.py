"""Training loops as torch's users write them, in one process: a view trains as what is written does."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import ce_fx
from tests.backend_rows import rows_of_the_backend
from tests.train.nets import (
    EXACT,
    OPTIONS,
    Block,
    backward,
    batch,
    loss_of,
    net,
    rewritten,
    same,
    sgd,
    train,
)


def optimised(model, **options):
    return ce_fx.optimize(model, **OPTIONS, **options)


class Noisy(nn.Module):
    """A block behind a dropout."""

    def __init__(self):
        super().__init__()
        self.drop, self.block = nn.Dropout(0.3), Block()

    def forward(self, x):
        return self.block(self.drop(x))


class Deep(nn.Module):
    """Three blocks with random states in them, of which `run` says how each is called."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Noisy() for _ in range(3)])
        self.run = lambda block, x: block(x)

    def forward(self, x):
        for block in self.blocks:
            x = self.run(block, x)
        return x


def saves_convolutions(ctx, op, *args, **kwargs):
    """A policy by name of op, as large trainings have it."""
    convolution = op in (torch.ops.aten.convolution.default, torch.ops.aten.mm.default)
    return CheckpointPolicy.MUST_SAVE if convolution else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = partial(create_selective_checkpoint_contexts, saves_convolutions)
CHECKPOINTS = {
    "without reentry": partial(checkpoint, use_reentrant=False),
    "with reentry": partial(checkpoint, use_reentrant=True),
    "selective": partial(checkpoint, use_reentrant=False, context_fn=SELECTIVE),
}


def seeded(model, n):
    """A step whose dropout is the same in every run, with gradients of the input as reentrant checkpoints need."""
    torch.manual_seed(n)
    return backward(loss_of(model, batch(n).requires_grad_()))


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_checkpoints_around_optimised_blocks(how):
    """A graph of a view is recomputed in the backward, with the random state of the forward."""
    written = net(Deep)
    expected = train(written, step=seeded)
    model = net(Deep)
    views = [optimised(block) for block in model.blocks]
    model.blocks = nn.ModuleList(views)
    model.run = CHECKPOINTS[how]
    same(train(model, step=seeded), expected)
    assert all(map(rewritten, views))


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", CHECKPOINTS)
def test_checkpoints_inside_an_optimised_model(how, inner):
    model, written = net(Deep), net(Deep)
    model.run = written.run = CHECKPOINTS[how]
    fast = optimised(model, inner=inner)
    same(train(fast, step=seeded), train(written, step=seeded))
    assert rewritten(fast)


def test_checkpoints_that_are_applied_to_a_view():
    """The wrapper replaces sub-modules, which a view shares with its model; it is applied before or after."""
    expected = train(net(Deep), step=seeded)
    for before in (True, False):
        model = net(Deep)
        fast = None if before else optimised(model)
        apply_activation_checkpointing(fast or model, check_fn=lambda module: isinstance(module, Noisy))
        fast = fast or optimised(model)
        same(train(fast, step=seeded), expected)
        assert rewritten(fast)


def test_a_sequence_of_views_in_segments():
    blocks = nn.Sequential(*(optimised(net(Block)) for _ in range(4)))
    written = nn.Sequential(*(net(Block) for _ in range(4)))

    def step(model, n):
        return backward(checkpoint_sequential(model, 2, batch(n), use_reentrant=False).square().mean())

    same(train(blocks, step=step), train(written, step=step))
    assert all(map(rewritten, blocks))


def accumulated(model, n, clip=None):
    """Four small batches, one of another size, and their gradients clipped."""
    total = 0
    for part, size in enumerate((4, 4, 2, 4)):
        total = total + backward(loss_of(model, batch(4 * n + part, size=size)) / 4).detach()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05, foreach=True)
    return total


def test_gradient_accumulation_and_clipping():
    fast = optimised(net())
    same(train(fast, step=accumulated), train(net(), step=accumulated))
    assert rewritten(fast)


OPTIMISERS = {
    "sgd foreach": sgd,
    "sgd fused": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adamw foreach": partial(torch.optim.AdamW, lr=0.01, foreach=True, amsgrad=True),
    "adam fused": partial(torch.optim.Adam, lr=0.01, fused=True),
    "adam capturable": partial(torch.optim.Adam, lr=torch.tensor(0.01, dtype=torch.float64), foreach=False),
    "rmsprop foreach": partial(torch.optim.RMSprop, lr=0.01, foreach=True, centered=True),
    "adafactor": partial(torch.optim.Adafactor, lr=0.01),
    "nadam foreach": partial(torch.optim.NAdam, lr=0.01, foreach=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers(name):
    """Weights change in place, in ways that leave a trace or none; every step reads them as they are."""
    fast = optimised(net())
    same(train(fast, OPTIMISERS[name], steps=4), train(net(), OPTIMISERS[name], steps=4))
    assert rewritten(fast)


@pytest.mark.parametrize("owner", ["model", "view"])
def test_an_optimiser_of_either_trains_both(owner):
    model = net()
    fast = optimised(model)
    weights = (model if owner == "model" else fast).parameters()
    same(train(fast, lambda _: sgd(weights)), train(net()))
    torch.testing.assert_close(fast(batch(9)), model(batch(9)), **EXACT)
    assert rewritten(fast)


def test_a_closure_that_is_called_many_times():
    states = []
    for model in (net(Block), optimised(net(Block))):
        optimiser = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=6, line_search_fn="strong_wolfe")

        def closure(model=model, optimiser=optimiser):
            optimiser.zero_grad()
            return backward(loss_of(model, batch(0)))

        for _ in range(2):
            optimiser.step(closure)
        states.append(model.state_dict())
    torch.testing.assert_close(*states, **EXACT)
    assert rewritten(model)


def test_steps_inside_the_backward():
    """Every parameter is stepped as soon as its gradient is there, and the gradient is released."""
    states = []
    for model in (net(), optimised(net())):
        optimisers = {p: torch.optim.SGD([p], 0.1, foreach=True) for p in model.parameters()}

        def step(p, optimisers=optimisers):
            optimisers[p].step()
            optimisers[p].zero_grad()

        for p in optimisers:
            p.register_post_accumulate_grad_hook(step)
        for n in range(3):
            backward(loss_of(model, batch(n)))
        assert all(p.grad is None for p in optimisers)
        states.append(model.state_dict())
    torch.testing.assert_close(*states, **EXACT)
    assert rewritten(model)


def test_parts_are_frozen_and_thawed():
    """Fine-tuning: first the head alone, then everything, by another optimiser."""
    runs = []
    for model in (net(), optimised(net())):
        model.first.requires_grad_(False)
        runs.append([train(model, lambda ps: sgd([p for p in ps if p.requires_grad]))])
        model.first.requires_grad_(True)
        runs[-1].append(train(model))
    for got, expected in zip(*runs, strict=True):
        same(got, expected)
    assert rewritten(model)


AVERAGES = {
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "ema with buffers": {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True},
    "mean": {},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averaged_copies(name):
    """The copy of a view is a view of the copy: it follows its own weights, and evaluates with folded ones, too."""
    results = []
    for fold in (None, False, True):
        model = net() if fold is None else optimised(net(), fold=fold)
        optimiser = sgd(model.parameters())
        averaged = AveragedModel(model, **AVERAGES[name])
        values = []
        for n in range(4):
            backward(loss_of(model, batch(n)))
            optimiser.step()
            optimiser.zero_grad()
            averaged.update_parameters(model)
            for each in (model, averaged):
                each.eval()
                with torch.no_grad():
                    values.append(each(batch(99)))
                each.train()
        update_bn([batch(n) for n in range(3)], averaged)
        averaged.eval()
        with torch.no_grad():
            values.append(averaged(batch(99)))
        results.append((values, averaged.state_dict()))
        assert fold is None or (rewritten(model) and rewritten(averaged.module))
    for got in results[1:]:
        torch.testing.assert_close(got, results[0], **EXACT)


def test_an_averaged_copy_of_the_model_beside_its_view():
    """The model is copied as written and follows what the view trains; it is optimised by itself."""
    results = []
    for view in (False, True):
        model = net()
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        trained = optimised(model) if view else model
        evaluated = optimised(averaged) if view else averaged
        optimiser = sgd(trained.parameters())
        schedule = SWALR(optimiser, swa_lr=0.05, anneal_epochs=2)
        for n in range(4):
            backward(loss_of(trained, batch(n)))
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            evaluated.update_parameters(trained)
        results.append((evaluated(batch(99)), evaluated.state_dict()))
    torch.testing.assert_close(*results, **EXACT)
    assert rewritten(trained) and rewritten(evaluated)


def test_a_gradient_scaler_skips_what_overflows():
    """Gradients of the second step are made infinite: the step is left out, and the scale halved, in both."""
    results = []
    for model in (net(), optimised(net())):
        optimiser = torch.optim.AdamW(model.parameters(), 0.01, foreach=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        seen = []
        for n in range(4):
            loss = loss_of(model, batch(n)) * (float("inf") if n == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimiser)
            seen.append(nn.utils.clip_grad_norm_(model.parameters(), 0.05))
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
            seen.append(scaler.get_scale())
        results.append((seen, model.state_dict()))
    torch.testing.assert_close(*results, **EXACT, equal_nan=True)
    assert results[1][0][3] == 2.0**9
    assert rewritten(model)


def functional(model, compiled=False):
    """Three steps with weights that are handed in as a dict and gradients that come out as one."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(weights, x):
        return (torch.func.functional_call(model, weights, (x,)) - x).square().mean()

    step = torch.func.grad_and_value(loss)
    step = torch.compile(step, backend="ce_fx", options={"inner": "eager", **OPTIONS}) if compiled else step
    losses = []
    for n in range(3):
        gradients, value = step(weights, batch(n))
        weights = {name: w - 0.1 * gradients[name] for name, w in weights.items()}
        losses.append(value.detach())
    return losses, weights


@pytest.mark.parametrize("before", [False, True])
def test_a_functional_training_step(before):
    """Dynamo captures nothing inside an eager transform: a view runs as written there.

    What it met there first it leaves alone from then on, until it is reset. That is so for any compiled module.
    """
    model = net(Block)
    fast = optimised(model)
    if before:
        fast(batch())
    torch.testing.assert_close(functional(fast), functional(net(Block)), **EXACT)
    torch.testing.assert_close(model.state_dict(), net(Block).state_dict(), rtol=0, atol=0)
    fast(batch())
    assert bool(rewritten(fast)) is before
    torch._dynamo.reset()
    torch.testing.assert_close(fast(batch()), model(batch()), **EXACT)
    assert rewritten(fast)


def test_a_compiled_functional_training_step():
    torch.testing.assert_close(functional(optimised(net(Block)), True), functional(net(Block)), **EXACT)


@pytest.mark.xfail(strict=True, reason="graphs that enter a transform are not read: TensorWrapper has no storage")
def test_a_compiled_functional_training_step_is_rewritten():
    with rows_of_the_backend() as rows:
        functional(net(Block), True)
    assert any(row.decision == "rewritten" for row in rows)


def test_gradients_per_sample_and_an_ensemble():
    """Captured before, a view still runs as written inside the transforms, and as it is optimised outside of them."""
    model = net(Block)
    fast = optimised(model)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    fast(batch())

    def loss(run, weights, x):
        return torch.func.functional_call(run, weights, (x[None],)).square().mean()

    rows = [torch.func.vmap(torch.func.grad(partial(loss, run)), (None, 0))(weights, batch()) for run in (fast, model)]
    torch.testing.assert_close(*rows, **EXACT)
    stacked, _ = torch.func.stack_module_state([net(Block), model])
    values = [torch.func.vmap(partial(loss, run), (0, None))(stacked, batch()[0]) for run in (fast, model)]
    torch.testing.assert_close(*values, **EXACT)
    assert rewritten(fast) and len(ce_fx.graph_modules(fast)) == 1


def convolutions(graphs):
    def is_one(node):
        return "conv2d" in str(node.target)

    return sum(node.op == "call_function" and is_one(node) for gm in graphs for node in gm.graph.nodes)


def collecting(graphs):
    """A backend that keeps what it is given, as it is given."""

    def compiler(gm, inputs):
        graphs.append(copy.deepcopy(gm))
        return gm.forward

    return compiler


@pytest.mark.parametrize("name", ["eager", "ce_fx", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_torch_compile_of_a_view(fullgraph, name):
    """A module that has a compiled call already keeps it, as after `Module.compile`: the outer backend gets nothing."""
    fast = optimised(net())
    same(train(torch.compile(fast, backend=name, fullgraph=fullgraph)), train(net()))
    assert rewritten(fast)
    graphs, other = [[], [], []], net()
    other.compile(backend=collecting(graphs[0]))
    torch.compile(other, backend=collecting(graphs[1]))(batch())
    torch.compile(optimised(net()), backend=collecting(graphs[2]), fullgraph=fullgraph)(batch())
    assert [len(found) for found in graphs] == [1, 0, 0]


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_function_around_a_view(fullgraph):
    """Dynamo traces through a compiled call as if it were not: a backend gets what is written, and ours rewrites."""
    fast, graphs = optimised(net()), []
    outer = collecting(graphs)
    call = torch.compile(lambda x: fast(x) * 1.0, backend=outer, fullgraph=fullgraph)
    ours = torch.compile(
        lambda x: fast(x) * 1.0, backend="ce_fx", options={"inner": outer, **OPTIONS}, fullgraph=fullgraph
    )
    expected = train(net())
    for run in (call, ours):
        fast.load_state_dict(net().state_dict())
        same(train(fast, step=lambda model, n, run=run: backward(loss_of(run, batch(n)))), expected)
    assert [convolutions([gm]) for gm in graphs[:1] + graphs[-1:]] == [8, 2]
    assert "not captured yet" in repr(fast)


def test_an_optimised_block_in_a_compiled_model():
    """As written where the outer graph goes through; rewritten where the graph breaks before the block."""
    graphs, model = [], net()
    model.first = optimised(model.first)
    same(train(torch.compile(model, backend=collecting(graphs))), train(net()))
    assert convolutions(graphs[:1]) == 8 and "not captured yet" in repr(model.first)
    torch._dynamo.reset()
    graphs.clear()
    model = net()
    view = optimised(model.first)
    model.first = Apart(view)
    same(train(torch.compile(model, backend=collecting(graphs))), train(net()))
    assert convolutions(graphs) == 4 and rewritten(view)


class Apart(nn.Module):
    """A module that an outer compiler leaves alone."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    @torch.compiler.disable(recursive=False)
    def forward(self, x):
        return self.module(x)


def test_a_compiled_block_in_an_optimised_model():
    """The outer one of the two captures it with the rest, and rewrites."""
    graphs, model = [], net()
    model.first.compile(backend=collecting(graphs))
    fast = optimised(model)
    same(train(fast), train(net()))
    assert {row.name.split(".")[0] for row in rewritten(fast)} == {"first", "second"}
    assert not graphs
    model.first(batch())
    assert len(graphs) == 1


def test_a_compiled_step_of_an_optimiser():
    """The step reads and writes weights and gradients of a view by another graph."""
    model = optimised(net())

    def compiled(parameters):
        optimiser = torch.optim.AdamW(parameters, 0.01, foreach=True)
        optimiser.step = torch.compile(optimiser.step, backend="aot_eager")
        return optimiser

    same(train(model, compiled), train(net(), compiled))
    assert rewritten(model)


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_compiled_autograd(inner):
    """The backward is captured, too; with an inner compiler it meets the graph of the rewritten forward."""
    fast = optimised(net(), inner=inner)

    def step(model, n):
        loss = loss_of(model, batch(n))
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            return backward(loss)

    same(train(fast, step=step), train(net()))
    assert rewritten(fast)


def test_anomaly_detection_and_saved_tensor_hooks():
    """Offloading what is saved for the backward sees what the rewritten graph saves, and gives it back."""
    count = [0]

    def pack(t):
        count[0] += 1
        return t.clone()

    contexts = {
        "anomaly": torch.autograd.detect_anomaly(check_nan=True),
        "hooks": torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        "offload": torch.autograd.graph.save_on_cpu(),
        "none": nullcontext(),
    }
    expected = train(net())
    for context in contexts.values():
        fast = optimised(net())
        with context:
            same(train(fast), expected)
        assert rewritten(fast)
    assert count[0]


def test_modules_of_one_class_in_many_views():
    """Each block of a deep model by itself, as large trainings compile: more than Dynamo's limit of recompiles."""
    blocks = nn.Sequential(*(optimised(net(Block)) for _ in range(10)))
    same(train(blocks), train(nn.Sequential(*(net(Block) for _ in range(10)))))
    assert all(map(rewritten, blocks))
