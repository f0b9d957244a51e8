"""Choices that outlive a process: what was chosen for a region, under a key that holds all that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ce_fx.algebra.canonical import canonical
from ce_fx.algebra.program import Group, Program, Recipe
from ce_fx.plan.plan import Plan
from ce_fx.plan.sums import build
from ce_fx.plan.tree import Tree, subset_of
from ce_fx.tune import machine, store
from ce_fx.tune.candidates import Candidate, candidate_of, networks_of, plans_on
from ce_fx.tune.choice import Choice
from ce_fx.tune.problem import Problem

log = logging.getLogger(__name__)

VERSION = 8
"""Of the planner and the lowering: raise it when a stored choice could be another one today."""

counters: Counter[str] = Counter()
"""How many regions were "chosen" (planned, perhaps measured) and how many "remembered", in this process."""


def recall(problem: Problem, key: str) -> Choice | None:
    """The choice of an earlier process, lowered anew; None where there is none that fits.

    What was measured holds whatever a prediction would be; what was predicted, for the same constants.
    """
    data = store.load("choice", key)
    if data is None:
        return None
    if not data.get("measured") and data.get("rates") != rates_of(problem):
        return None  # a prediction by other constants
    try:
        candidate = None if data["plans"] is None else _candidate(problem, data["recipe"], data["plans"])
        choice = Choice(candidate, data["written"], data["seconds"], data["measured"], data["reason"])
    except (KeyError, IndexError, TypeError, ValueError) as error:  # a file that somebody edited
        log.warning("a stored choice does not fit and is made anew: %s: %s", type(error).__name__, error)
        return None
    counters["remembered"] += 1
    return choice


def remember(problem: Problem, key: str, choice: Choice) -> None:
    """Keep a choice for later processes, if it may be kept."""
    counters["chosen"] += 1
    if not choice.lasting:
        return
    plans = None if choice.candidate is None else [_entry(plan) for plan in choice.candidate.plans]
    store.save(
        "choice",
        key,
        {
            "recipe": None if choice.candidate is None else _written(choice.candidate.program.recipe),
            "plans": plans,
            "written": choice.written,
            "seconds": choice.seconds,
            "measured": choice.measured,
            "reason": choice.reason,
            "rates": rates_of(problem),
        },
    )


def rates_of(problem: Problem) -> str:
    """A name for the constants that times are predicted by."""
    return hashlib.sha256(json.dumps(problem.model.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def key_of(problem: Problem, written: Sequence[str], tune: str | bool, inner: str) -> str:
    """All that a choice depends on, as text.

    Args:
        problem: the region.
        written: its nodes, as they print.
        tune: the option.
        inner: what runs the graph.
    """
    leaf = problem.leaves[0]
    leaves = [
        [list(map(str, leaf.shape)), list(map(str, leaf.stride())), str(leaf.dtype), leaf.requires_grad, op.constant]
        for leaf, op in zip(problem.leaves, problem.operands, strict=False)
    ]
    return json.dumps(
        {
            "expression": str(problem.expression),
            "device": machine.facts(leaf.device, leaf.dtype),
            "canonical": repr(canonical(problem.expression)),
            "leaves": leaves,
            "derived": [repr(leaf) for leaf in problem.derived],
            "written": list(written),
            "training": problem.training,
            "checkpoint": problem.checkpoint,
            "fold": problem.fold,
            "objective": problem.objective,
            "memory_limit": problem.memory_limit,
            "guards": problem.guards and bool(problem.symbolic),
            "tune": tune,
            "inner": inner,
            "version": VERSION,
        }
    )


def _entry(plan: Plan) -> dict[str, Any]:
    ways = {str(subset): way for subset, way in plan.ways.items()}
    return {"tree": plan.tree, "ways": ways, "channels_last": plan.channels_last, "method": plan.method}


def _candidate(problem: Problem, recipe: Any, entries: Sequence[dict[str, Any]]) -> Candidate:
    """The candidate of a file.

    Raises:
        ValueError: it is of another expression.
    """
    program = build(problem.expression, _recipe(recipe), len(problem.operands))
    if program is None:
        raise ValueError("the sum cannot be factored so")
    return candidate_of(problem, program, _plans(problem, program, entries))


def _plans(problem: Problem, program: Program, entries: Sequence[dict[str, Any]]) -> list[Plan]:
    orders = []
    for network, entry in zip(networks_of(problem, program), entries, strict=True):
        tree = _tree(entry["tree"])
        if subset_of(tree) != network.everything:
            raise ValueError(f"the tree {tree} is not of {network.n} operands")
        ways = {int(subset): way for subset, way in entry["ways"].items()}
        orders.append((tree, entry["method"], ways, bool(entry["channels_last"])))
    return plans_on(problem, program, orders)


def _written(recipe: Recipe) -> list[Any]:
    """A recipe as JSON: a number stays one, a group becomes a list of three."""
    return [
        part if isinstance(part, int) else [list(part.core), list(part.members), _written(part.inner)]
        for part in recipe
    ]


def _recipe(nested: Any) -> Recipe:
    """A recipe from JSON.

    Raises:
        TypeError, ValueError: it is none.
    """
    parts: list[int | Group] = []
    for part in nested:
        if isinstance(part, int):
            parts.append(part)
        else:
            core, members, inner = part
            parts.append(Group(tuple(core), tuple(members), _recipe(inner)))
    return tuple(parts)


def _tree(nested: Any) -> Tree:
    """A tree from JSON, where a pair is a list.

    Raises:
        TypeError: it is none.
    """
    if isinstance(nested, int):
        return nested
    if not isinstance(nested, list):
        raise TypeError(f"{nested!r} is no tree")
    left, right = nested
    return _tree(left), _tree(right)
