"""Choose how one region is evaluated: by prediction where that is clear, else by the clock.

The two stages are those of autotuners that draft by a cost model and verify by measuring (Ansor, Zheng et al., OSDI
2020): the prediction is off by a factor of 1.5, which leaves a handful of candidates, and the clock decides among them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import TypeAlias

import torch
from torch import Tensor

from ce_fx.lower.emit import LoweringError, has_images
from ce_fx.plan.modes import grads, runs
from ce_fx.plan.plan import Plan
from ce_fx.plan.tree import splits_of, step_of
from ce_fx.plan.ways import ops_of_way, ways_of
from ce_fx.tune.candidates import SLOWER, Candidate, Lowered, candidate_of, candidates, different, to_be_timed
from ce_fx.tune.clock import plain_mode
from ce_fx.tune.machine import untimed
from ce_fx.tune.problem import Problem
from ce_fx.tune.race import Race, race
from ce_fx.tune.runs import Inner, compiled_runs, forward_of, random_leaves, run_of

log = logging.getLogger(__name__)

MARGIN = {"time": 0.9, "flops": 1.0, "memory": 1.0}
"""By prediction, a rewrite must cost less than this share of what was written: predicted time must win clearly."""

ERROR = {True: 1.5, False: 2.0}
"""Factor that a prediction may be off, calibrated or not."""

BUDGET = 0.2
"""Seconds of one race."""

_FINALISTS = {True: 6, False: 8}  # candidates that are timed, calibrated or not
_FORMS = 3  # of them are timed in usual ways and in the other memory format, too
_TIE = 1.03  # less than this is no gain
_TIE_ELSEWHERE = {False: 1.1, True: 1.3}  # by eager kernels, where others will run, in half precision (True) or not
_NOISE = 0.10  # two runs of one thing that differ by more say nothing about others
_HEAVY = 0.05  # share of a plan's predicted time from which other ways of a step are tried
_VARIANTS = 9  # changes that are tried at once
_ROUNDS = 3
_HOPELESS = 8  # times the predicted time, from which a way is not tried


@dataclass(frozen=True)
class Choice:
    """What was chosen for a region.

    Attributes:
        candidate: what replaces it; None for as written.
        written, seconds: time of one run as written and as chosen, in seconds.
        measured: they were measured; else predicted.
        reason: one plain sentence.
        lasting: may be kept for other runs; False where the machine was too noisy to tell.
        rivals: all candidates: at other sizes one of them may be the best.
    """

    candidate: Candidate | None
    written: float
    seconds: float
    measured: bool
    reason: str
    lasting: bool = True
    rivals: tuple[Candidate, ...] = ()


def choose(problem: Problem, tune: str | bool, inner: Inner | None = None) -> Choice:
    """Choose how a region is evaluated.

    Args:
        problem: the region.
        tune: "auto" or True, where the region can be timed; False.
        inner: has the last word where `tune` is True; None for eager torch.

    Raises:
        PlanError: no order keeps to the memory limit.
        LoweringError: no order has an exact form in torch ops.
    """
    found = candidates(problem)
    if not found:
        return kept_as_written(problem)
    choice = by_prediction(problem, found)
    if tune is True or (tune == "auto" and not _is_clear(problem, found)):
        choice = _by_clock(problem, found, choice, inner, asked=tune is True)
    return replace(choice, rivals=tuple(found))


def kept_as_written(problem: Problem) -> Choice:
    """Nothing better was found."""
    seconds = problem.cost.seconds
    return Choice(None, seconds, seconds, False, _NO_GAIN[problem.objective])


def by_prediction(problem: Problem, found: Sequence[Candidate], margin: float | None = None) -> Choice:
    """The best candidate where it beats what is written by the margin, a share of its cost.

    Where the memory of training counts, what is written is no rival if it takes much longer than the fastest. The
    fastest is among the candidates then.
    """
    objective, before, after = problem.objective, problem.cost, found[0].cost
    if problem.saves and before.seconds > SLOWER * min(one.cost.seconds for one in found):
        ratio = before.seconds / after.seconds
        return Choice(found[0], before.seconds, after.seconds, False, f"{ratio:.1f}x {_GAIN['time']}")
    if after.of(objective) >= (margin or MARGIN[objective]) * before.of(objective):
        fewer = objective == "time" and min(one.cost.flops for one in found) < before.flops
        return Choice(None, before.seconds, before.seconds, False, _NO_GAIN["fewer" if fewer else objective])
    ratio = before.of(objective) / max(after.of(objective), 1e-12)
    doubt = "" if objective != "time" or problem.model.calibrated else ", uncalibrated"
    return Choice(found[0], before.seconds, after.seconds, False, f"{ratio:.1f}x {_GAIN[objective]}{doubt}")


_GAIN = {"time": "less time predicted", "flops": "fewer FLOPs", "memory": "less memory at the peak"}
_NO_GAIN = {
    "time": "no faster order found",
    "flops": "FLOPs are already optimal",
    "memory": "memory is already optimal",
    "fewer": "an order with fewer FLOPs is not predicted to be faster",
}


def can_be_timed(problem: Problem) -> bool:
    """Time counts, real tensors of the region's kind can be run here, and this is not one rank of several."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (
        (problem.objective == "time" or problem.lean) and not distributed and untimed(problem.leaves[0].device) is None
    )


def _is_clear(problem: Problem, found: Sequence[Candidate]) -> bool:
    """The prediction is beyond its error: one candidate 10 % faster than all else, or all slower than as written.

    It is never so for images, whose memory formats differ by factors that no prediction knows.
    """
    error = 1.1 * ERROR[problem.model.calibrated]
    best, *others = [one.cost.seconds for one in found]
    if best > error * problem.cost.seconds:
        return True
    if any(has_images(plan.network) for plan in found[0].plans):
        return False
    ways = [best + change for plan in found[0].plans for _, _, change in other_ways(problem, plan)]
    return error * best < min((problem.cost.seconds, *others, *ways))


def _by_clock(
    problem: Problem, found: Sequence[Candidate], predicted: Choice, inner: Inner | None, asked: bool
) -> Choice:
    """Time the closest candidates and as written; then other ways of the winner's heavy steps.

    The winner and as written are compared once more, where measuring was asked for through the inner backend: compiling
    all of them would take minutes.
    """
    device = problem.leaves[0].device
    finalists: list[Lowered] = [*different(found, _FINALISTS[problem.model.calibrated])]
    with plain_mode(device), torch.set_grad_enabled(problem.training):
        leaves = random_leaves(problem, inner is not None and inner.channels_last)
        finalists += [form for one in finalists[:_FORMS] for form in _other_forms(problem, one, leaves)]
        as_written = run_of(forward_of(problem, problem.written, leaves), leaves)
        runners = [run_of(forward_of(problem, one.module, leaves), leaves) for one in finalists]
        first = quiet(lambda: race([as_written, *runners], device, BUDGET))
        if first is None:
            return replace(predicted, reason=f"{predicted.reason} (too noisy to measure)", lasting=False)
        fastest = next(_holding(problem, finalists, first.seconds[1:]))[1]  # those that were found all hold
        best = with_better_ways(problem, fastest, leaves)
        pair = [as_written, run_of(forward_of(problem, best.module, leaves), leaves)]
        through = inner if asked and not problem.checkpoint else None  # recomputation is timed by eager kernels only
        compiled = compiled_runs([problem.written, best.module], leaves, through) if through else None
        last = quiet(lambda: race(compiled or pair, device, BUDGET))
    if last is None:
        return replace(predicted, reason=f"{predicted.reason} (too noisy to measure)", lasting=False)
    written, seconds = last.seconds
    gain = last.gains[1]
    by = "measured" if inner is None else f"measured through {inner.name}" if compiled else "measured by eager kernels"
    # A compiler fuses copies and picks kernels of its own. In half precision a third of eager's time is copies between
    # layouts and dtypes: what gained 1.11x there, a LoRA merged into its convolution, was 0.92x behind Inductor.
    least = _TIE if inner is None or compiled else _TIE_ELSEWHERE[problem.output.element_size() <= 2]
    if last.sure[1] < least:
        reason = f"{by}: the best other order gains {gain:.2f}x" if gain > 1 else f"{by}: nothing is faster"
        return Choice(None, written, written, True, reason)
    return Choice(best, written, seconds, True, f"{gain:.2f}x faster, {by}")


def _other_forms(problem: Problem, one: Lowered, leaves: Sequence[Tensor]) -> list[Lowered]:
    """The order of a candidate with every step in the way of its kind, as images stand and in channels last."""
    images = problem.memory_limit is None and any(has_images(plan.network) for plan in one.plans)
    forms = []
    for last in (False, True) if images else (False,):
        plans = [replace(plan, ways={}, channels_last=last) for plan in one.plans]
        if plans == list(one.plans):
            continue
        try:
            forms.append(to_be_timed(problem, one.program, plans, leaves))
        except LoweringError as error:
            log.debug("a form of %s has no exact form in torch: %s", problem.expression, error)
    return forms


def quiet(attempt: Callable[[], Race]) -> Race | None:
    """A race on a machine that is quiet enough to tell; tried twice."""
    for _ in range(2):
        result = attempt()
        if result.noise <= _NOISE:
            return result
    return None


def _holding(problem: Problem, ways: Sequence[Lowered], seconds: Sequence[float]) -> Iterator[tuple[int, Candidate]]:
    """The number and the price of those that hold for all symbolic sizes, the fastest first."""
    for number in sorted(range(len(ways)), key=seconds.__getitem__):
        one = ways[number]
        try:
            yield number, one if isinstance(one, Candidate) else candidate_of(problem, one.program, one.plans)
        except LoweringError as error:
            log.debug("a way of %s does not hold: %s", problem.expression, error)


def with_better_ways(problem: Problem, best: Candidate, leaves: Sequence[Tensor]) -> Candidate:
    """The same order with its heavy steps evaluated in the ways that are fastest by the clock."""
    device = problem.leaves[0].device
    settled: set[_Change] = set()
    for _ in range(_ROUNDS):  # the first finds the change that matters most, the next ones what is left
        variants = list(islice(_variants(problem, best, leaves, settled), _VARIANTS))
        if not variants:
            return best
        ways = [best, *(one for _, one in variants)]
        result = race([run_of(forward_of(problem, one.module, leaves), leaves) for one in ways], device, BUDGET)
        if result.noise > _NOISE or result.gains[result.winner] < _TIE:
            return best
        number, best = next(_holding(problem, ways, result.seconds))
        if result.gains[number] < _TIE:
            return best
        taken = variants[number - 1][0]
        if taken is None:
            settled.clear()  # in another memory format every way may be another matter
        else:
            timed = zip(variants, result.gains[1:], strict=True)
            settled |= {way for (way, _), gain in timed if way and (gain * _TIE < 1 or way[:2] == taken[:2])}
    return best


_Change: TypeAlias = tuple[int, int, str]
"""The number of a product, the operands of a step's result, the way that the step takes."""


def _variants(
    problem: Problem, base: Lowered, leaves: Sequence[Tensor], settled: Collection[_Change] = ()
) -> Iterator[tuple[_Change | None, Lowered]]:
    """The candidate in the other memory format, with all steps in usual ways, or with one heavy step in another way.

    The most promising first, by the time model, which knows nothing of memory formats.

    Args:
        problem: the region.
        base: what is changed.
        leaves: real tensors.
        settled: ways that need no other look.

    Yields:
        (what was changed, None for a whole plan; the candidate).
    """
    changes: list[tuple[float, int, Plan, _Change | None]] = []
    for number, plan in enumerate(base.plans):
        images = has_images(plan.network) and problem.memory_limit is None
        for last in (plan.channels_last, not plan.channels_last) if images else (plan.channels_last,):
            for ways in (plan.ways, {}):
                other = replace(plan, channels_last=last, ways=ways)
                if other != plan and (-inf, number, other, None) not in changes:
                    changes.append((-inf, number, other, None))
        for subset, way, seconds in other_ways(problem, plan):
            if (number, subset, way) not in settled:
                changed = replace(plan, ways={**plan.ways, subset: way})
                changes.append((seconds, number, changed, (number, subset, way)))
    for _, number, changed, change in sorted(changes, key=lambda each: each[:2]):
        try:
            plans = [changed if n == number else plan for n, plan in enumerate(base.plans)]
            yield change, to_be_timed(problem, base.program, plans, leaves)
        except LoweringError as error:
            log.debug("a way of %s has no exact form: %s", problem.expression, error)


def other_ways(problem: Problem, plan: Plan) -> Iterator[tuple[int, str, float]]:
    """(operands of the result, way, predicted change in seconds) for the heavy steps of a plan."""
    if problem.memory_limit is not None:
        return
    network = plan.network
    table: list[tuple[int, str, dict[str, float]]] = []
    for left, right in splits_of(plan.tree):
        if problem.fold and not (left | right) & ~network.constant:
            continue  # done once
        step = step_of(network, left, right)
        mode = problem.mode
        wanted, times = grads(network, left, right, mode), runs(network, left | right, mode)
        ways = ways_of(step, network)
        seconds = {way: problem.model.seconds(ops_of_way(step, network, way), wanted, times) for way in ways}
        table.append((left | right, plan.ways.get(left | right, ways[0]), seconds))
    heavy = _HEAVY * sum(seconds[now] for _, now, seconds in table)
    for subset, now, seconds in table:
        if seconds[now] >= heavy:
            others = [way for way in seconds if way != now and seconds[way] < _HOPELESS * seconds[now]]
            yield from ((subset, way, seconds[way] - seconds[now]) for way in others)
