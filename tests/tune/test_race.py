"""What rounds of timings say, and that a race is run as it says."""

import sys

import pytest
import torch

from ce_fx.tune.race import _in_reach, outcome, race


def test_bursts_of_load_change_nothing():
    """A round in four that is slower, for whichever function, is not in the lower quartile."""
    quiet = [[10.0, 5.0, 20.0]] * 6
    loaded = [[100.0, 5.0, 20.0], [10.0, 50.0, 20.0]]
    result = outcome([*quiet[:3], *loaded, *quiet[3:]])
    assert result.seconds == (10.0, 5.0, 20.0) and result.noise == 0
    assert result.gains == (1.0, 2.0, 0.5) and result.winner == 1


def test_noise_is_how_far_odd_and_even_rounds_of_the_first_differ():
    assert outcome([[10.0, 5.0], [12.0, 5.0]] * 4).noise == pytest.approx(0.2)
    assert outcome([[10.0, 5.0], [10.0, 9.0]] * 4).noise == 0


def test_a_gain_in_half_of_the_rounds_is_not_sure():
    """Load that comes and goes with the rounds of one half makes no winner."""
    result = outcome([[10.0, 5.0], [10.0, 12.0]] * 4)
    assert result.gains[1] > 1.5 and result.sure == (1.0, pytest.approx(10 / 12))
    assert outcome([[10.0, 5.0]] * 6).sure == (1.0, 2.0)


def test_a_race_runs_in_turn_and_hopeless_functions_only_at_first(monkeypatch):
    times = {"slow": 4.0, "fast": 3.0, "hopeless": 9.0}
    order = []

    def clock(run, repeats, device):
        return times[run()]

    monkeypatch.setattr(sys.modules["ce_fx.tune.race"], "clock_of", lambda device: clock)
    monkeypatch.setattr(sys.modules["ce_fx.tune.race"], "_MOST", 1e9)  # seconds that are not real take no budget
    runs = [lambda name=name: order.append(name) or name for name in times]
    result = race(runs, torch.device("cpu"), 0.001)
    assert result.seconds == (4.0, 3.0, 9.0) and result.winner == 1 and result.noise == 0
    assert order.count("hopeless") == 3, "once to warm up, and twice"
    assert order[9:] == ["slow", "fast"] * (len(order[9:]) // 2) and len(order) >= 9 + 12


def test_a_first_one_that_is_far_behind_takes_no_rounds(monkeypatch):
    """A slow form as written would take the time in which the others are told apart."""
    times = {"written": 12.0, "fast": 3.0, "near": 4.0}
    order = []
    monkeypatch.setattr(sys.modules["ce_fx.tune.race"], "clock_of", lambda device: lambda run, *_: times[run()])
    monkeypatch.setattr(sys.modules["ce_fx.tune.race"], "_MOST", 1e9)
    result = race([lambda name=name: order.append(name) or name for name in times], torch.device("cpu"), 0.001)
    assert result.seconds == (12.0, 3.0, 4.0) and result.gains == (1.0, 4.0, 3.0) and result.winner == 1
    assert result.sure[1:] == (4.0, 3.0) and result.noise == 0
    assert order.count("written") == 3 and order.count("fast") == order.count("near") >= 9


def test_the_allocator_is_settled_before_anything_is_timed(monkeypatch):
    order = []
    monkeypatch.setattr(sys.modules["ce_fx.tune.race"], "settle_allocator", lambda: order.append("settled"))
    race([lambda: order.append("run")], torch.device("cpu"), 0.001)
    assert order[0] == "settled" and order.count("settled") == 1


def test_a_race_of_one_is_fine():
    assert race([lambda: None], torch.device("cpu"), 0.01).gains == (1.0,)


def test_a_race_of_slow_functions_ends():
    """A round that takes as long as all of them should: the best are run, and what cannot be told is not."""
    assert _in_reach([1.0, 0.9, 0.5, 0.6, 3.0], seconds=10) == [0, 2, 3], "the others are far behind"
    assert _in_reach([1.0, 0.5, 0.4, 0.45], seconds=1.9) == [0, 2, 3]
    assert _in_reach([1.0, 2.0, 1.2], seconds=0.1) == [0, 2], "one rival at least"
    assert _in_reach([9.0, 2.0, 1.2, 1.3], seconds=0.1) == [2], "what is compared with is far behind, and not run again"
    assert outcome([[1.0, 2.0], [3.0, 1.0]]).noise == float("inf")
