"""Decisions by the clock: what is timed, and what is believed."""

import dataclasses
from importlib import import_module

import pytest
import torch

import ce_fx
from ce_fx.inner import judge
from ce_fx.lower.value import LoweringError
from ce_fx.options import Options
from ce_fx.tune import candidates, choice, remembered
from ce_fx.tune.candidates import Candidate
from ce_fx.tune.cost import Cost
from ce_fx.tune.race import Race
from ce_fx.tune.runs import Inner
from tests.tune.choosing import X, layer, report_of, without_calibration

pytestmark = pytest.mark.usefixtures("cache")


def test_what_is_faster_by_the_clock_is_taken(clock):
    races = clock(2e-3, 1e-3)
    row = report_of(layer())
    assert (row.decision, row.measured) == ("rewritten", True)
    assert row.reason == "2.00x faster, measured" and (row.time_before, row.time_after) == (2e-3, 1e-3)
    assert races[0] >= 3 and races[-1] == 2, "several in the first race, the winner and as written in the last"


@pytest.mark.parametrize(("others", "words"), [(0.99e-3, "gains 1.01x"), (1.5e-3, "nothing is faster")])
def test_a_tie_keeps_what_is_written(clock, others, words):
    clock(1e-3, others)
    row = report_of(layer())
    assert (row.decision, row.measured, row.time_after) == ("kept", True, row.time_before) and words in row.reason


def test_noise_leaves_the_prediction_and_is_said(clock, cache):
    races = clock(1e-3, 5e-3, noise=0.2)
    row = report_of(layer())
    assert (row.decision, row.measured) == ("rewritten", False), "predicted to be faster"
    assert "too noisy to measure" in row.reason and len(races) == 2, "it is tried twice"
    assert not (cache / "choice").exists(), "what was not measured is no lasting choice"


def test_without_tuning_nothing_runs(clock):
    races = clock(1e-3, 5e-4)
    assert not report_of(layer(), tune=False).measured and not races


def linears():
    """A chain of two matrices: no images, whose memory formats a prediction cannot rank."""
    return torch.nn.Sequential(torch.nn.Linear(20, 4, bias=False), torch.nn.Linear(4, 20, bias=False))


@pytest.mark.parametrize(("error", "timed"), [(1e-6, False), (1e6, True)])
def test_auto_times_where_the_prediction_is_not_clear(clock, monkeypatch, error, timed):
    races = clock(2e-3, 1e-3)
    monkeypatch.setattr(choice, "ERROR", dict.fromkeys((True, False), error))
    assert report_of(linears(), tune="auto").measured is timed and bool(races) is timed


@pytest.mark.parametrize(("others", "decision"), [(0.5, "rewritten"), (2.0, "kept")])
def test_a_near_tie_is_measured(clock, others, decision):
    """LoRA on 64 channels, 56 px, rank 8: bypass and merged kernel were measured within 5 %, so the clock decides."""

    class LoRA(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False)
            self.a = torch.nn.Conv2d(64, 8, 3, padding=1, bias=False)
            self.b = torch.nn.Conv2d(8, 64, 1, bias=False)

        def forward(self, x):
            return self.base(x) + self.b(self.a(x)) * 2

    races = clock(1.0, others)
    with torch.no_grad():
        fast = ce_fx.optimize(LoRA(), (torch.randn(2, 64, 56, 56),), tune="auto")
    rows = ce_fx.report(fast).layers
    assert races and {(row.decision, row.measured) for row in rows} == {(decision, True)}


def test_candidates_that_are_alike_leave_room_for_others():
    """Six of equal price before another idea, which comes second; alike ones fill what is left."""

    def one(seconds):
        return Candidate(None, (), None, Cost(0, 0, seconds))

    found = [*(one(1.0) for _ in range(6)), one(1.01), one(1.0104), one(3.0)]
    assert [c.cost.seconds for c in choice.different(found, 3)] == [1.0, 1.01, 3.0]
    assert [c.cost.seconds for c in choice.different(found, 5)] == [1.0, 1.01, 3.0, 1.0, 1.0]


def test_no_change_is_tried_twice(clock, monkeypatch):
    clock(2e-3, 1e-3)
    tried = []
    variants = choice._variants
    monkeypatch.setattr(choice, "_variants", lambda *given: (tried.append(v[1].plans) or v for v in variants(*given)))
    monkeypatch.setattr(choice, "_ROUNDS", 1)
    report_of(layer())
    assert len(tried) > 1 and all(tried.count(plans) == 1 for plans in tried)


def test_a_way_that_was_slower_is_not_tried_again(monkeypatch):
    """Memory formats are, for they go with the ways."""
    rounds = []
    variants = choice._variants

    def spy(*given):
        rounds.append([])
        for change, one in variants(*given):
            rounds[-1].append(change)
            yield change, one

    def race(runs, device, budget):
        """The last one is fastest, the others are slower than the first."""
        seconds = [1.0, *[1.5] * (len(runs) - 2), 0.5]
        return Race(tuple(seconds), 0.0, tuple(seconds[0] / one for one in seconds))

    monkeypatch.setattr(choice, "_variants", spy)
    monkeypatch.setattr(choice, "race", race)
    report_of(layer())
    first, second = rounds[:2]
    ways = [change for change in first if change is not None]
    assert first[-1] is ways[-1] and len(ways) > 2
    assert None in second and not set(ways) & set(second)


def test_true_times_whatever_the_prediction(clock, monkeypatch):
    clock(2e-3, 1e-3)
    monkeypatch.setattr(choice, "ERROR", dict.fromkeys((True, False), 1e-6))
    assert report_of(linears(), tune=True).measured


def test_the_prediction_for_images_is_never_clear_of_other_formats(clock, monkeypatch):
    clock(2e-3, 1e-3)
    monkeypatch.setattr(choice, "ERROR", dict.fromkeys((True, False), 1.0))
    fewest = choice.candidates

    def far_ahead(problem):
        best, *_ = fewest(problem)
        return [dataclasses.replace(best, cost=dataclasses.replace(best.cost, seconds=1e-9))]

    monkeypatch.setattr(choice, "candidates", far_ahead)
    monkeypatch.setattr(choice, "other_ways", lambda problem, plan: iter(()))
    assert report_of(layer(), tune="auto").measured
    torch._dynamo.reset()
    assert not report_of(linears(), tune="auto").measured, "one candidate, far ahead, without images"


@pytest.mark.parametrize("grad", [False, True])
def test_what_is_timed_needs_gradients_as_the_true_leaves_do(clock, monkeypatch, grad):
    """Recorded or not: torch chooses kernels by it."""
    clock(2e-3, 1e-3)
    seen = []
    original = choice.random_leaves
    monkeypatch.setattr(choice, "random_leaves", lambda *given: seen.append(original(*given)) or seen[-1])
    report_of(layer(), grad=grad)
    (leaves,) = seen
    assert [leaf.requires_grad for leaf in leaves].count(True) == len(list(layer().parameters()))
    assert not any(leaf.requires_grad for leaf in leaves if leaf.shape == torch.Size(X))


@pytest.mark.parametrize("objective", ["flops", "memory"])
def test_the_clock_is_for_time_only(clock, objective):
    races = clock(1e-3, 5e-4)
    assert not report_of(layer(), objective=objective).measured and not races


def test_ranks_of_a_process_group_get_predictions(clock):
    races = clock(1e-3, 5e-4)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert not report_of(layer()).measured and not races
    finally:
        torch.distributed.destroy_process_group()
    torch._dynamo.reset()
    assert report_of(layer()).measured, "what was predicted for ranks is no choice for others"


def test_equal_regions_are_timed_once(clock):
    races = clock(2e-3, 1e-3)
    report_of(layer())
    single = len(races)
    remembered.counters.clear()
    shared = torch.nn.Sequential(layer(), torch.nn.ReLU(), layer())
    report_of(shared, objective="time", tune="auto")
    assert remembered.counters == {"chosen": 1} and len(races) <= 2 * single


@pytest.mark.parametrize("grad", [False, True])
def test_backward_is_timed_where_it_runs(grad, monkeypatch):
    seen = set()
    original = choice.run_of

    def spy(forward, leaves):
        run = original(forward, leaves)
        result = run()
        seen.add(type(result))
        return run

    monkeypatch.setattr(choice, "run_of", spy)
    report_of(layer(), grad=grad)
    assert seen == ({tuple} if grad else {torch.Tensor}), "gradients where they are recorded, else the result"


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_an_inner_backend_has_the_last_word_where_measuring_is_asked_for(clock, grad):
    """Compiled inside the outer compilation, forward and backward; the model then runs as ever."""
    clock(2e-3, 1e-3)
    model = layer()
    x = torch.randn(X)
    with torch.set_grad_enabled(grad):
        fast = ce_fx.optimize(model, (x,), tune=True, inner="inductor")
        assert ce_fx.report(fast).layers[0].reason == "2.00x faster, measured through inductor"
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_eager_kernels_judge_where_compiling_takes_too_long(clock):
    clock(2e-3, 1e-3)
    assert report_of(layer(), tune="auto", inner="aot_eager").reason == "2.00x faster, measured by eager kernels"


@pytest.mark.parametrize(("checkpoint", "by"), [(True, "by eager kernels"), (False, "through aot_eager")])
def test_eager_kernels_judge_where_the_backward_recomputes(clock, checkpoint, by):
    """What is compiled of a region to be timed keeps its intermediates."""
    clock(2e-3, 1e-3)
    row = report_of(layer(), grad=True, inner="aot_eager", checkpoint=checkpoint)
    assert row.reason.startswith(f"2.00x faster, measured {by}")


@pytest.mark.parametrize(("inner", "decision"), [("eager", "rewritten"), ("aot_eager", "kept")])
def test_a_small_gain_by_other_kernels_than_those_that_will_run_is_none(clock, inner, decision):
    clock(1.05e-3, 1e-3)
    row = report_of(layer(), tune="auto", inner=inner)
    assert row.decision == decision and "1.05x" in row.reason


@pytest.mark.parametrize(("dtype", "decision"), [(torch.float32, "rewritten"), (torch.bfloat16, "kept")])
def test_eager_kernels_say_less_of_others_in_half_precision(clock, dtype, decision):
    """A LoRA merged into its convolution gained 1.11x there, and lost 8 % behind Inductor."""
    clock(1.2e-3, 1e-3)
    fast = ce_fx.optimize(layer().to(dtype), (torch.randn(X, dtype=dtype),), tune="auto", inner="aot_eager")
    row = ce_fx.report(fast).layers[0]
    assert row.decision == decision and "1.20x" in row.reason


def test_images_are_timed_as_inductor_stores_them(clock, monkeypatch):
    """Where a graph has a convolution it stores them in channels last; copies into it would be timed and not made."""
    clock(1e-3, 2e-3)
    seen = []
    original = choice.random_leaves
    monkeypatch.setattr(choice, "random_leaves", lambda *given: seen.append((given, original(*given))) or seen[-1][1])
    last = Inner("inductor", lambda module, leaves: module.forward, channels_last=True)
    monkeypatch.setattr(import_module("ce_fx.decide"), "judge", lambda *given: last)
    report_of(layer(), tune="auto")
    ((given, (image, *factors)),) = seen
    assert given[1] and image.shape == X and image.is_contiguous(memory_format=torch.channels_last)
    assert [factor.stride() for factor in factors] == [leaf.stride() for leaf in given[0].leaves[1:]]


def test_inductor_stores_images_in_channels_last_on_cpu():
    def stores(inner, device="cpu", convolves=True):
        found = judge(Options.of({"inner": inner}), torch.device(device), convolves)
        return found is not None and found.channels_last

    assert stores("inductor") is torch.backends.mkldnn.is_available()
    assert not (stores("aot_eager") or stores("eager") or stores("inductor", convolves=False))
    assert not stores("inductor", "cuda"), "there it depends on the graph"


def test_a_backend_that_cannot_be_asked_costs_nothing_but_its_word(clock):
    calls = []

    def fails_at_first(gm, inputs, **kwargs):
        calls.append(gm)
        if len(calls) == 1:
            raise ArithmeticError("planted")
        return gm.forward

    clock(2e-3, 1e-3)
    assert report_of(layer(), inner=fails_at_first).reason == "2.00x faster, measured by eager kernels"
    assert len(calls) == 2, "asked once while choosing, and then for the model"


def test_timing_touches_neither_weights_nor_random_state(clock):
    model = layer()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    x = torch.randn(X, generator=torch.Generator().manual_seed(1))
    ce_fx.optimize(model, (x,), tune=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


def test_a_default_device_of_the_user_is_not_where_things_are_timed():
    model, x = layer(), torch.randn(X)
    torch.set_default_device("meta")
    try:
        with torch.no_grad():
            fast = ce_fx.optimize(model, (x,), tune=True)
        row = ce_fx.report(fast).layers[0]
    finally:
        torch.set_default_device(None)
    assert row.decision in ("rewritten", "kept") and not ce_fx.report(fast).mismatches
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factorization", ["tt", "cp", "tucker"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_measured_choice_keeps_values_and_gradients(factorization, grad):
    """No fake clock: whatever wins here is exact, strides included."""
    model = layer(factorization).double()
    x = torch.randn(X, dtype=torch.float64, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        fast = ce_fx.optimize(model, (x,), tune=True)
        got, expected = fast(x), model(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert got.stride() == expected.stride()
    if grad:
        leaves = [x, *model.parameters()]
        for a, b in zip(
            torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_all_rows_are_priced_by_the_calibration_that_one_of_them_asks_for(clock, monkeypatch):
    """The first convolution has nothing to choose, and stands before the layer for which the machine is measured."""
    measured = []

    def by_need(device, dtype, *, measure=False, verbose=None):
        measured.extend([measure] if measure else [])
        model = without_calibration(device, dtype)
        slow = {name: dataclasses.replace(line, t0=1.0) for name, line in model.forward_rates.items()}
        return dataclasses.replace(model, forward_rates=slow, calibrated=True) if measured else model

    monkeypatch.setattr(import_module("ce_fx.rewrite"), "time_model", by_need)
    clock(1.0, 0.5)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU(), layer())
    with torch.no_grad():
        first, second = ce_fx.audit(model, (torch.randn(X),), tune=True).layers
    assert measured and second.measured
    assert first.reason == "one convolution" and first.time_before > 1


def test_a_way_that_torch_does_not_run_is_none(clock, monkeypatch):
    """No kernel for a dtype, or no memory: the other ways are tried all the same."""
    clock(2e-3, 1e-3)
    problems = []
    found = choice.candidates
    monkeypatch.setattr(choice, "candidates", lambda problem: problems.append(problem) or found(problem))
    report_of(layer())
    best = found(problems[0])[0]
    leaves = choice.random_leaves(problems[0])
    assert candidates.to_be_timed(problems[0], best.program, best.plans, leaves).module(*leaves).shape
    with pytest.raises(LoweringError, match="torch does not run it"):
        candidates.to_be_timed(problems[0], best.program, best.plans, [leaf[:1] for leaf in leaves])
