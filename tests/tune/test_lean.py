"""In training `objective="memory"` takes the least memory within a tenth of the best time, both as measured."""

import pytest
import torch

import ce_fx
from ce_fx.tune import lean
from ce_fx.tune.choice import Choice
from ce_fx.tune.cost import Cost
from ce_fx.tune.race import Race
from tests.train.kept import gradients, same
from tests.tune.choosing import X, layer
from tests.tune.test_saving import Saving, costing

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("memory", "seconds", "best"),
    [
        ([50, 20], [1.0, 1.1], 1),
        ([50, 20], [1.0, 1.11], 0),
        ([50, 20, 10], [1.0, 1.05, 1.2], 1),
        ([50, 20, 10], [1.3, 1.0, 1.12], 1),  # what was the fastest by another race
        ([50, 20, 20], [1.0, 1.1, 1.05], 2),
        ([50], [1.0], 0),
    ],
)
def test_the_least_memory_within_a_tenth_of_the_best_time(memory, seconds, best):
    assert lean.least(memory, seconds) == best


def kept(objective, **options):
    """The report of a layer, and the bytes that it keeps for its backward."""
    model, x = layer(), torch.randn(X, requires_grad=True)
    fast = ce_fx.optimize(model, (x,), objective=objective, tune=True, **options)
    found, bytes_ = gradients(fast, model, x)
    same(found, gradients(model, model, x)[0], 1e-4)
    return ce_fx.report(fast).layers[0], bytes_


def says(monkeypatch, leaner, noise=0.0):
    """A clock by which what takes less memory takes some times as long as the fastest."""
    races = []

    def race(runs, device, budget):
        for run in runs:
            run()
        races.append(len(runs))
        seconds = (1e-3, *[leaner * 1e-3] * (len(runs) - 1))
        return Race(seconds, noise, tuple(1e-3 / one for one in seconds))

    monkeypatch.setattr(lean, "race", race)
    return races


@pytest.mark.parametrize(("leaner", "taken"), [(0.9, True), (1.09, True), (1.11, False)])
def test_what_keeps_less_is_taken_where_it_is_not_much_slower(monkeypatch, clock, leaner, taken):
    clock(2e-3, 1e-3)
    _, by_time = kept("time")
    races = says(monkeypatch, leaner)
    row, bytes_ = kept("memory")
    assert races and row.measured and row.decision == "rewritten"
    assert (bytes_ < by_time) == taken
    assert row.time_after == pytest.approx(1e-3 * (leaner if taken else 1))
    gain = 2 / leaner if taken else 2
    assert f"{gain:.2f}x faster, measured" in row.reason
    assert ("less saved for the backward" in row.reason) == (bytes_ < kept_as_written())


def kept_as_written():
    model, x = layer(), torch.randn(X, requires_grad=True)
    return gradients(model, model, x)[1]


def test_what_is_written_is_kept_where_nothing_keeps_less(monkeypatch, clock):
    """Nothing is faster than two matrices in a row, and they keep one small tensor."""
    clock(1e-3, 2e-3)
    says(monkeypatch, 1.05)
    model = torch.nn.Sequential(torch.nn.Linear(64, 4, bias=False), torch.nn.Linear(4, 64, bias=False))
    x = torch.randn(256, 64, requires_grad=True)
    row = ce_fx.report(ce_fx.optimize(model, (x,), objective="memory", tune=True)).layers[0]
    assert row.decision == "kept" and row.time_after == row.time_before
    assert row.reason == "measured: nothing takes less memory in a tenth over the best time"


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_noise_leaves_the_fastest_or_what_is_predicted_to_keep_no_more_than_is_written(
    monkeypatch, clock, cache, noise
):
    """It is tried twice, and not stored."""
    clock(2e-3, 1e-3, noise)
    races = says(monkeypatch, 1.0, noise=0.2)
    row, bytes_ = kept("memory")
    assert len(races) == (0 if noise else 2)
    assert row.measured == (noise == 0)
    if noise:
        assert bytes_ <= kept_as_written()
        assert "(too noisy to measure)" in row.reason
    else:
        assert "2.00x faster, measured (too noisy to measure what takes less)" in row.reason
    assert not (cache / "choice").exists()


@pytest.mark.parametrize(("saved", "taken"), [(19, True), (20, True), (21, False)])
def test_on_a_noisy_machine_nothing_is_taken_that_is_predicted_to_keep_more_than_is_written(monkeypatch, saved, taken):
    """By prediction alone it would be, where what is written is predicted to be slow."""
    problem, other = Saving(Cost(1, 1, 2.0, saved=20)), costing(1.0, saved)

    def choose(problem, tune, inner=None):
        return Choice(other, 2.0, 1.0, False, "2.0x less time predicted", lasting=tune is False)

    monkeypatch.setattr(lean, "choose", choose)
    choice = lean.leanest(problem, True)
    assert choice.candidate is (other if taken else None)
    assert not choice.lasting and choice.reason.endswith(" (too noisy to measure)")
    assert choice.seconds == (1.0 if taken else 2.0)


def test_without_gradients_memory_is_not_timed(monkeypatch, clock):
    races, others = clock(2e-3, 1e-3), says(monkeypatch, 1.0)
    with torch.no_grad():
        row = ce_fx.report(ce_fx.optimize(layer(), (torch.randn(X),), objective="memory", tune=True)).layers[0]
    assert not row.measured and not races and not others


@pytest.mark.parametrize(("leaner", "taken"), [(1.05, True), (1.2, False)])
def test_with_recomputation_it_is_the_peak_that_counts(monkeypatch, clock, leaner, taken):
    """Merged there is no wide intermediate."""
    clock(1e-3, 2e-3)
    races = says(monkeypatch, leaner)
    model = torch.nn.Sequential(torch.nn.Linear(64, 8192, bias=False), torch.nn.Linear(8192, 64, bias=False))
    x = torch.randn(32, 64, requires_grad=True)
    fast = ce_fx.optimize(model, (x,), objective="memory", tune=True, checkpoint=True)
    same(gradients(fast, model, x)[0], gradients(model, model, x)[0], 1e-4)
    (row,) = ce_fx.report(fast).layers
    assert races and row.measured and (row.decision == "rewritten") == taken
    assert ("less memory at the peak, 1.05x slower, measured" in row.reason) == taken
