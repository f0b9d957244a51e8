"""From measured seconds to the constants of the time model, and how well it predicts what it has not seen.

Plain floats and a few hundred lines of arithmetic: the package needs no numerical library for it. All constants are
positive, so their logs are fitted, by damped Gauss-Newton steps (Levenberg and Marquardt) on the log of predicted over
measured. A soft L1 loss keeps one odd instance from bending the fit; a weak pull to the prior decides what seven
instances leave open, and keeps every constant within reason.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from ce_fx.plan.ops import FAMILIES, Op
from ce_fx.plan.time_model import Roofline, TimeModel
from ce_fx.tune.microbench import Sample

_PULL = 0.05  # weight of the squared log distance to the prior, against the mean loss of the samples
_STEP = 1e-4  # of the numerical derivatives, in logs
_DAMPING = (1e-2, 1e8)  # at the start, and where to give up
_GAIN = 1e-6  # of the loss; less than that ends the descent
_SWEEPS = 40

Residuals = Callable[[Sequence[float]], list[float]]


@dataclass(frozen=True)
class Quality:
    """How well a model predicts a set of samples.

    Attributes:
        spearman: rank correlation of predicted and measured seconds; 1 where every order is right.
        factor: the typical factor between the two, `exp(mean |log(predicted / measured)|)`.
        instances: how many samples.
    """

    spearman: float
    factor: float
    instances: int

    def __str__(self) -> str:
        return f"Spearman {self.spearman:.3f}, typical factor {self.factor:.2f}"


def fitted(samples: Sequence[Sample], prior: TimeModel) -> TimeModel:
    """A model of the device that the samples are of.

    First the prior is brought to the device's speed: one factor for all launches, one for all rates, one for all
    bandwidths. Then each family's constants are fitted, drawn to what that gave.

    Args:
        samples: of any families; one without samples keeps the prior, at the device's speed.
        prior: constants to start from, and the kind of number.

    Returns:
        The model, marked as calibrated.
    """
    tables = {}
    for backward, table in ((False, prior.forward_rates), (True, prior.both_rates)):
        start = at_speed(samples, table, prior, backward)
        tables[backward] = {
            family: _family([s for s in samples if s.op.family == family], start[family], prior, backward)
            for family in FAMILIES
        }
    return replace(prior, forward_rates=tables[False], both_rates=tables[True], calibrated=True)


def at_speed(
    samples: Sequence[Sample], table: Mapping[str, Roofline], numbers: TimeModel, backward: bool
) -> dict[str, Roofline]:
    """The constants of another device of the same kind, by three factors for all families."""

    def scaled(logs: Sequence[float]) -> dict[str, Roofline]:
        launch, rate, bandwidth = map(math.exp, logs)
        return {
            family: replace(
                r,
                t0=r.t0 * launch,
                each=r.each * launch,
                rate=r.rate * rate,
                bandwidth=r.bandwidth * bandwidth,
                far=r.far * bandwidth,
            )
            for family, r in table.items()
        }

    def residuals(logs: Sequence[float]) -> list[float]:
        return _errors(samples, scaled(logs), numbers, backward)

    return scaled(descend(residuals, 3, _PULL / 100)) if samples else dict(table)  # all samples decide, not seven


def _family(samples: Sequence[Sample], prior: Roofline, numbers: TimeModel, backward: bool) -> Roofline:
    """The constants of one family; those that are 0 or the whole in the prior do not exist in it."""
    if not samples:
        return prior
    free = [f.name for f in fields(prior) if getattr(prior, f.name) > 0 and (f.name, getattr(prior, f.name)) != _WHOLE]
    if not any(s.op.macs for s in samples):
        free = [name for name in free if name in ("t0", "n0", "bandwidth", "far")]

    def moved(logs: Sequence[float]) -> Roofline:
        values = {name: getattr(prior, name) * math.exp(log) for name, log in zip(free, logs, strict=True)}
        if "alone" in values:
            values["alone"] = min(1.0, values["alone"])
        return replace(prior, **values)

    def residuals(logs: Sequence[float]) -> list[float]:
        one = moved(logs)
        return [_error(one, s, numbers, backward) for s in samples]

    return moved(descend(residuals, len(free)))


_WHOLE = ("alone", 1.0)


def _error(rates: Roofline, sample: Sample, numbers: TimeModel, backward: bool) -> float:
    predicted = rates.seconds(sample.op, numbers.itemsize, numbers.real_macs)
    return math.log(predicted / sample.seconds(backward))


def _errors(
    samples: Sequence[Sample], table: Mapping[str, Roofline], numbers: TimeModel, backward: bool
) -> list[float]:
    return [_error(table[s.op.family], s, numbers, backward) for s in samples]


def descend(residuals: Residuals, count: int, pull: float = _PULL) -> list[float]:
    """The offsets that minimise `mean(soft L1 of residuals) + pull * mean(offset^2)`, from all of them zero.

    Args:
        residuals: of given offsets.
        count: of offsets.
        pull: weight of what draws them to zero.

    Source: the damped normal equations of Levenberg (1944) and Marquardt (1963), each residual weighted by what a soft
    L1 loss makes of it (iteratively reweighted least squares).
    """
    at = [0.0] * count
    errors = residuals(at)
    loss = _loss(errors, at, pull)
    damping, hopeless = _DAMPING
    for _ in range(_SWEEPS):
        matrix, slope = _normal_equations(residuals, at, errors, pull)
        gain = 0.0
        while damping < hopeless:
            damped = [[v * (1 + damping) if i == j else v for j, v in enumerate(row)] for i, row in enumerate(matrix)]
            step = [min(1.0, max(-1.0, -s)) for s in solved(damped, slope)]
            trial = [a + s for a, s in zip(at, step, strict=True)]
            ahead = residuals(trial)
            less = _loss(ahead, trial, pull)
            if less < loss:
                gain, at, errors, loss = loss - less, trial, ahead, less
                damping = max(damping / 4, 1e-6)
                break
            damping *= 4
        if gain < _GAIN:
            break
    return at


def _loss(errors: Sequence[float], at: Sequence[float], pull: float) -> float:
    soft = sum(math.sqrt(1 + e * e) - 1 for e in errors) / len(errors)
    return soft + pull * sum(a * a for a in at) / len(at)


def _normal_equations(
    residuals: Residuals, at: Sequence[float], errors: Sequence[float], pull: float
) -> tuple[list[list[float]], list[float]]:
    """Gauss and Newton's matrix and the slope of the loss."""
    weights = [1 / (len(errors) * math.sqrt(1 + e * e)) for e in errors]
    changes = []
    for n in range(len(at)):
        beside = [a + (_STEP if m == n else 0.0) for m, a in enumerate(at)]
        changes.append([(b - e) / _STEP for b, e in zip(residuals(beside), errors, strict=True)])
    own = 2 * pull / len(at)
    weighted = [[w * c for w, c in zip(weights, change, strict=True)] for change in changes]
    matrix = [
        [
            sum(a * b for a, b in zip(row, change, strict=True)) + (own if i == j else 0.0)
            for j, change in enumerate(changes)
        ]
        for i, row in enumerate(weighted)
    ]
    slope = [sum(a * e for a, e in zip(row, errors, strict=True)) + own * at[i] for i, row in enumerate(weighted)]
    return matrix, slope


def solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The solution of a symmetric positive definite system of a few unknowns, by elimination without pivots."""
    rows = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    size = len(rows)
    for n in range(size):
        for m in range(n + 1, size):
            share = rows[m][n] / rows[n][n]
            for column in range(n, size + 1):
                rows[m][column] -= share * rows[n][column]
    found = [0.0] * size
    for n in reversed(range(size)):
        rest = sum(rows[n][m] * found[m] for m in range(n + 1, size))
        found[n] = (rows[n][size] - rest) / rows[n][n]
    return found


def quality(samples: Sequence[Sample], model: TimeModel, backward: bool) -> Quality:
    """How well a model predicts samples in one direction."""
    price = model.forward_backward if backward else model.forward
    return compared([price(s.op) for s in samples], [s.seconds(backward) for s in samples])


def flops_alone(samples: Sequence[Sample], backward: bool) -> Quality:
    """What the count of multiply-adds says of the ops that have some, at the one rate that fits them best."""
    counted = [s for s in samples if s.op.macs]
    predicted = [float(s.op.macs) for s in counted]
    measured = [s.seconds(backward) for s in counted]
    offsets = sorted(math.log(m / p) for p, m in zip(predicted, measured, strict=True))
    return compared([p * math.exp(offsets[len(offsets) // 2]) for p in predicted], measured)


def compared(predicted: Sequence[float], measured: Sequence[float]) -> Quality:
    """The quality of predicted seconds."""
    factors = [abs(math.log(p / m)) for p, m in zip(predicted, measured, strict=True)]
    return Quality(spearman(predicted, measured), math.exp(sum(factors) / len(factors)), len(factors))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank. 0 where all are equal."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) - 1) / 2
    a, b = [x - mean for x in a], [x - mean for x in b]
    spread = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for n in order[start:end]:
            ranks[n] = (start + end - 1) / 2
        start = end
    return ranks


def held_out(samples: Sequence[Sample], prior: TimeModel, splits: int = 6) -> tuple[Quality, Quality]:
    """Quality on ops that the fit has not seen, forward and both: the mean over splits.

    Each split leaves out about a third of every family, at random; an op is on one side whole.
    """
    found: tuple[list[Quality], list[Quality]] = ([], [])
    for seed in range(splits):
        unseen = _left_out(samples, random.Random(seed))
        model = fitted([s for s in samples if s.op not in unseen], prior)
        rest = [s for s in samples if s.op in unseen]
        for backward in (False, True):
            found[backward].append(quality(rest, model, backward))
    forward, both = (
        Quality(sum(q.spearman for q in side) / splits, sum(q.factor for q in side) / splits, side[0].instances)
        for side in found
    )
    return forward, both


def _left_out(samples: Sequence[Sample], rng: random.Random) -> set[Op]:
    unseen: set[Op] = set()
    for family in FAMILIES:
        mine = list(dict.fromkeys(s.op for s in samples if s.op.family == family))
        unseen |= set(rng.sample(mine, round(0.3 * len(mine))))
    return unseen
