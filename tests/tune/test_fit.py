"""Fitting planted constants, the minimiser, and the measures of quality."""

import math
import random
from dataclasses import replace

import pytest

from ce_fx.plan.ops import FAMILIES, Op
from ce_fx.plan.time_model import TimeModel
from ce_fx.tune.fit import (
    Quality,
    compared,
    descend,
    fitted,
    flops_alone,
    held_out,
    quality,
    solved,
    spearman,
)
from ce_fx.tune.instances import all_instances
from tests.tune.planted import other_device, sample

DEFAULT = TimeModel.default("cpu")


def samples(model, count=7, seed=0, noise=0.0):
    rng = random.Random(seed)
    return [sample(model, one.op, noise, rng) for one in all_instances(count, seed)]


@pytest.mark.parametrize("seed", range(3))
def test_planted_constants_are_recovered_from_seven_ops_a_family(seed):
    device = other_device(seed)
    model = fitted(samples(device), DEFAULT)
    fresh = samples(device, 20, seed=9)
    for backward in (False, True):
        before, after = quality(fresh, DEFAULT, backward), quality(fresh, model, backward)
        assert before.factor > 1.6
        assert after.factor < 1.12 and after.spearman > 0.99
    assert model.calibrated and not DEFAULT.calibrated


def test_many_exact_samples_give_back_the_rate_itself():
    device = other_device(4, spread=0.3)
    model = fitted(samples(device, 25), DEFAULT)
    for family in ("mm", "conv", "conv1x1"):
        assert model.forward_rates[family].t0 == pytest.approx(device.forward_rates[family].t0, rel=0.15)
    largest = Op("conv", 10**10, 4608, 512, 3136, 10**7)
    assert model.forward(largest) == pytest.approx(device.forward(largest), rel=0.3)


def test_noise_of_a_tenth_is_evened_out():
    device = other_device(1)
    model = fitted(samples(device, noise=0.1), DEFAULT)
    assert quality(samples(device, 20, seed=9), model, False).factor < 1.2


def test_one_mad_sample_does_not_bend_the_fit():
    device = other_device(2)
    clean = samples(device, 12)
    spoilt = [replace(s, forward=s.forward * 50) if n == 5 else s for n, s in enumerate(clean)]
    fresh = [s for s in samples(device, 20, seed=9) if s.op.family == "mm"]
    assert quality(fresh, fitted(spoilt, DEFAULT), False).factor < 1.4


def test_a_family_without_samples_moves_with_the_device():
    device = other_device(1, spread=0.0)  # all families by the same three factors
    seen = [s for s in samples(device) if s.op.family != "grouped"]
    model = fitted(seen, DEFAULT)
    fresh = [s for s in samples(device, 20, seed=9) if s.op.family == "grouped"]
    assert quality(fresh, DEFAULT, False).factor > 1.5
    assert quality(fresh, model, False).factor < 1.15


def test_no_samples_leave_the_prior():
    model = fitted([], DEFAULT)
    assert model == replace(DEFAULT, calibrated=True)


def test_constants_that_do_not_exist_stay_so():
    cuda = TimeModel.default("cuda")
    model = fitted([sample(other_device(5), one.op) for one in all_instances(5)], cuda)
    for family in FAMILIES:
        rates = model.forward_rates[family]
        assert (rates.alone, rates.each, rates.far) == (1.0, 0.0, 0.0)
        assert all(getattr(rates, name) > 0 for name in ("t0", "rate", "bandwidth"))
    assert all(r.alone <= 1 for r in fitted(samples(other_device(6)), DEFAULT).forward_rates.values())


@pytest.mark.parametrize(("itemsize", "complex_numbers"), [(8, False), (8, True), (16, True), (2, False)])
def test_a_fit_to_other_numbers_predicts_those(itemsize, complex_numbers):
    device = other_device(7).for_numbers(itemsize, complex_numbers)
    model = fitted(samples(device), DEFAULT.for_numbers(itemsize, complex_numbers))
    assert (model.itemsize, model.complex_numbers) == (itemsize, complex_numbers)
    assert quality(samples(device, 20, seed=9), model, False).factor < 1.12


def test_held_out_tells_noise_from_a_fit():
    device = other_device(8)
    good = held_out(samples(device), DEFAULT)
    bad = held_out(samples(device, noise=1.5), DEFAULT)
    for q in good:
        assert q.factor < 1.25 and q.spearman > 0.98
        assert q.instances == 12 * 2  # two of seven ops of each family
    assert all(q.factor > 2 and q.spearman < 0.95 for q in bad)


def test_quality_of_planted_predictions():
    exact = compared([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert exact == Quality(1.0, 1.0, 3)
    doubled = compared([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert doubled.spearman == pytest.approx(1) and doubled.factor == pytest.approx(2)
    mixed = compared([2.0, 0.5], [1.0, 1.0])
    assert mixed.factor == pytest.approx(2)
    assert str(doubled) == "Spearman 1.000, typical factor 2.00"


def test_spearman():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / n(n^2-1)
    assert spearman([1, 1, 2, 2], [1, 2, 3, 4]) == pytest.approx(2 / math.sqrt(5))  # ties share their mean rank
    assert spearman([1, 1, 1], [1, 2, 3]) == 0


def test_flops_alone_says_less_than_the_model():
    found = samples(other_device(9), 20)
    alone = flops_alone(found, False)
    assert alone.instances == 20 * 9  # sum, copy and add have none
    assert alone.factor > 2 and alone.spearman < 0.95


def test_descend_finds_a_minimum_and_is_drawn_to_the_start():
    def off(at):
        return [at[0] - 0.7, at[1] + 0.3, at[0] + at[1] - 0.4]

    assert descend(off, 2, pull=1e-9) == pytest.approx([0.7, -0.3], abs=1e-4)
    drawn = descend(off, 2, pull=1e3)
    assert all(abs(a) < 0.01 for a in drawn)
    assert descend(lambda at: [0.0], 3) == [0.0] * 3


def test_solved():
    matrix = [[4.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 2.0]]
    found = solved(matrix, [1.0, 2.0, 3.0])
    back = [sum(a * x for a, x in zip(row, found, strict=True)) for row in matrix]
    assert back == pytest.approx([1.0, 2.0, 3.0])
