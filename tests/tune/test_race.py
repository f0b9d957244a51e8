"""What rounds of timings say, and that a race is run as it says."""

import pytest
import torch

from ce_fx.tune.race import outcome, race


def test_gains_are_medians_of_ratios_round_by_round():
    """A burst of load that slows a whole round down changes nothing."""
    rounds = [[10.0, 5.0, 20.0, 10.0], [100.0, 50.0, 200.0, 100.0], [10.0, 5.0, 20.0, 10.0]]
    result = outcome(rounds)
    assert result.gains == pytest.approx((1.0, 2.0, 0.5))
    assert result.seconds == (10.0, 5.0, 20.0) and result.noise == 0


def test_noise_is_how_far_two_runs_of_the_first_differ():
    assert outcome([[10.0, 5.0, 12.0], [10.0, 5.0, 12.0], [10.0, 5.0, 10.0]]).noise == pytest.approx(0.2)


def test_a_race_runs_in_turn_and_tells_slow_from_fast():
    order = []
    x = torch.randn(200, 200)

    def fast():
        order.append("fast")
        return x @ x[:, :2]

    def slow():
        order.append("slow")
        for _ in range(60):
            x @ x

    result = race([slow, fast], torch.device("cpu"), 0.05)
    assert result.gains[0] == 1 and result.gains[1] > 1.5, "sixty large products against one small one"
    turns = [a for n, a in enumerate(order[-40:]) if n == 0 or order[-40:][n - 1] != a]
    assert {"slow", "fast"} == set(turns)


def test_a_race_of_one_is_fine():
    assert race([lambda: None], torch.device("cpu"), 0.01).gains == (1.0,)
