"""The orders that were chosen for a network at one batch size, taken again at another.

At another batch size another order may be the best. A line through the bytes of two orders would say nothing of either,
and choosing takes longer than all that is counted of the second batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from ce_fx import decide
from ce_fx.decide import Context
from ce_fx.lift.region import Region
from ce_fx.plan.sums import build
from ce_fx.tune.candidates import candidate_of, plans_on
from ce_fx.tune.choice import Choice
from ce_fx.tune.problem import Problem

Chosen = tuple[Problem, Choice]


@dataclass
class Orders:
    """What was chosen for the regions of one network, in the order of the graphs.

    Attributes:
        made: the expression of each region with its choice, or with the error that it was refused for.
    """

    made: list[tuple[str, Choice | Exception]] = field(default_factory=list)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Choices are made as ever, and kept here."""
        choose: Callable[[Problem, Region, Context], Chosen] = decide._chosen

        def keep(problem: Problem, region: Region, context: Context) -> Chosen:
            try:
                used, choice = choose(problem, region, context)
            except Exception as error:
                self.made.append((str(problem.expression), error))
                raise
            self.made.append((str(problem.expression), choice))
            return used, choice

        with patch.object(decide, "_chosen", keep):
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """Regions are evaluated in the orders that were kept; where one does not fit, the region is refused."""
        rest = iter(self.made)

        def take(problem: Problem, region: Region, context: Context) -> Chosen:
            expression, choice = next(rest)
            if expression != str(problem.expression):
                raise ValueError(f"{problem.expression} stands where {expression} was")
            if isinstance(choice, Exception):
                raise choice
            one = choice.candidate
            if one is None:
                return problem, choice
            program = build(problem.expression, one.program.recipe, len(problem.operands))
            if program is None:
                raise ValueError(f"{expression} cannot be factored as it was")
            orders = [(plan.tree, plan.method, plan.ways, plan.channels_last) for plan in one.plans]
            same = candidate_of(problem, program, plans_on(problem, program, orders))
            return problem, replace(choice, candidate=same, rivals=())

        with patch.object(decide, "_chosen", take):
            yield
