"""Little memory in training at nearly the best time, where both are measured.

A prediction is off by a factor of 1.5, and "a tenth over the best time" by prediction alone may be twice that: so the
fastest way is found by the clock, and what takes less memory is timed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor
from torch.fx import GraphModule

from ce_fx.tune.candidates import SLOWER, Candidate, candidate_of, lean_candidates
from ce_fx.tune.choice import BUDGET, ERROR, Choice, choose, kept_as_written, quiet, with_better_ways
from ce_fx.tune.clock import plain_mode
from ce_fx.tune.cost import Cost
from ce_fx.tune.problem import Problem
from ce_fx.tune.race import race
from ce_fx.tune.runs import Inner, forward_of, random_leaves, run_of

_ORDERS = 3  # that take the least memory, of which the best ways are looked for, too
_LESS = {"train": "saved for the backward", "checkpoint": "memory at the peak"}


@dataclass(frozen=True)
class _Way:
    """As written (no candidate), or a candidate."""

    module: GraphModule
    cost: Cost
    candidate: Candidate | None = None

    @property
    def memory(self) -> float:
        return self.cost.of("memory")


def leanest(problem: Problem, tune: str | bool, inner: Inner | None = None) -> Choice:
    """The way that takes the least memory in training among those within a tenth of the best measured time.

    Args:
        problem: the region, whose objective is memory.
        tune: "auto" or True, as in `choose`, which finds the fastest.
        inner: as there. What takes less memory is compared by eager kernels.

    Raises:
        PlanError: no order keeps to the memory limit.
        LoweringError: no order has an exact form in torch ops.
    """
    fast = choose(replace(problem, objective="time", cost=replace(problem.cost, saved=None)), tune, inner)
    if not fast.lasting:
        return _by_prediction(problem)
    written = _Way(problem.written, problem.cost)
    fastest = written if fast.candidate is None else _priced(problem, fast.candidate)
    found = lean_candidates(problem, SLOWER * ERROR[problem.model.calibrated])
    with plain_mode(problem.leaves[0].device), torch.set_grad_enabled(problem.training):
        leaves = random_leaves(problem, inner is not None and inner.channels_last)
        leaner = _leaner(problem, fastest, [written, *(_of(one) for one in found)], leaves)
        ways = [fastest, *leaner]
        runs = [run_of(forward_of(problem, way.module, leaves), leaves) for way in ways]
        last = quiet(lambda: race(runs, problem.leaves[0].device, BUDGET)) if leaner else None
    noisy = bool(leaner) and last is None  # the fastest stays then
    seconds = last.seconds if last else (1.0,) + (inf,) * len(leaner)
    best = least([way.memory for way in ways], seconds)
    after = fast.seconds * seconds[best] / seconds[0]
    reason = (
        _reason(problem, written, ways[best], fast, after, inner) + noisy * " (too noisy to measure what takes less)"
    )
    return Choice(ways[best].candidate, fast.written, after, fast.measured, reason, not noisy, tuple(found))


def least(memory: Sequence[float], seconds: Sequence[float]) -> int:
    """The number of the one with the least memory, of those within a tenth of the best time."""
    near = [n for n, one in enumerate(seconds) if one <= SLOWER * min(seconds)]
    return min(near, key=lambda n: (memory[n], seconds[n]))


def _by_prediction(problem: Problem) -> Choice:
    """Where it is too noisy to time anything: less memory by prediction, and never more than what is written."""
    choice = choose(problem, False)
    if choice.candidate is not None and choice.candidate.cost.of("memory") > problem.cost.of("memory"):
        choice = replace(kept_as_written(problem), rivals=choice.rivals)
    return replace(choice, reason=f"{choice.reason} (too noisy to measure)", lasting=False)


def _of(one: Candidate) -> _Way:
    return _Way(one.module, one.cost, one)


def _priced(problem: Problem, one: Candidate) -> _Way:
    """What was chosen by time, with its memory."""
    return _of(candidate_of(problem, one.program, one.plans))


def _leaner(problem: Problem, fastest: _Way, ways: Sequence[_Way], leaves: Sequence[Tensor]) -> list[_Way]:
    """Those that take less memory than the fastest, some of them in better ways as well, if that still does."""
    less = sorted((way for way in ways if way.memory < fastest.memory), key=lambda way: way.memory)[:_ORDERS]
    better = [_of(with_better_ways(problem, way.candidate, leaves)) for way in less if way.candidate is not None]
    return [*less, *(way for way in better if way.memory < fastest.memory)]


def _reason(problem: Problem, written: _Way, best: _Way, fast: Choice, after: float, inner: Inner | None) -> str:
    """Why, in one plain sentence."""
    by = "predicted" if not fast.measured else "measured" if inner is None else "measured by eager kernels"
    if best.candidate is None:
        return f"{by}: nothing takes less memory in a tenth over the best time"
    gain, ratio = fast.written / after, written.memory / max(1.0, best.memory)
    time = f"{gain:.2f}x faster" if gain >= 1 else f"{1 / gain:.2f}x slower"
    return f"{ratio:.1f}x less {_LESS[problem.mode]}, {time}, {by}" if ratio >= 1.05 else f"{time}, {by}"
