"""The plan that a region would have if its symbolic sizes were others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ce_fx.algebra import Axis, Index, flat, substitute
from ce_fx.lower.value import LoweringError
from ce_fx.plan.plan import PlanError
from ce_fx.plan.sums import build
from ce_fx.sizes import assuming, hint
from ce_fx.tune.candidates import Candidate, candidate_of, drafts, plans_on
from ce_fx.tune.problem import Problem
from ce_fx.tune.symbolic import at_hints, values_of


def planned_at(problem: Problem, sizes: Mapping[str, Any], factor: float) -> Candidate | None:
    """The best order, by prediction, for other sizes; lowered for any size and priced at the hints.

    Args:
        problem: a region with symbolic sizes.
        sizes: these sizes by how they print.
        factor: what every symbol's hint is multiplied by.

    Returns:
        None where there is no such size, or no such order holds for all sizes.
    """
    from sympy import Integer

    values = values_of(problem.symbolic)
    scaled = {symbol: Integer(max(2, int(int(value) * factor))) for symbol, value in values.items()}
    expression = problem.expression
    indices = frozenset(flat(expression.axes)).union(*(term.indices for term in expression.terms))
    try:
        with assuming(scaled):
            table: dict[Index, Axis] = {i: (replace(i, size=hint(sizes[i.symbol])),) for i in indices if i.symbol}
            leaves = at_hints(problem.symbolic)
        if any(index.size < 1 for (index,) in table.values()):
            return None
        other = replace(problem, expression=substitute(expression, table), leaves=leaves, symbolic=())
        program, plans = drafts(other)[0]
        same = build(problem.expression, program.recipe, len(problem.operands))
        if same is None:
            return None
        orders = [(plan.tree, plan.method, plan.ways, plan.channels_last) for plan in plans]
        return candidate_of(problem, same, plans_on(problem, same, orders))
    except (PlanError, LoweringError, ValueError, KeyError, RuntimeError):  # of sizes that the graph does not allow
        return None
