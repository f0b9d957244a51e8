"""Which regions keep their inputs only for the backward, and what that costs: `checkpoint=True`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from ce_fx.decide import Context, Decision, priced, problem_of
from ce_fx.lift.region import Region
from ce_fx.lower.recompute import is_alone, saved_bytes
from ce_fx.tune.cost import cost_of

log = logging.getLogger(__name__)


def with_recomputation(decisions: Sequence[tuple[Region, Decision]], context: Context) -> list[tuple[Region, Decision]]:
    """The decisions, each with whether its region is recomputed in the backward.

    Orders were compared as if all were recomputed, what is written included; what is reported as before is a run
    without.
    """
    return [(region, _with_recomputation(region, decision, context)) for region, decision in decisions]


def _with_recomputation(region: Region, decision: Decision, context: Context) -> Decision:
    once, again = (cost_of(*priced(region, context), checkpoint) for checkpoint in (False, True))
    before = once.timed(decision.before.seconds * once.seconds / again.seconds if again.seconds else 0.0)
    keeps = _keeps_intermediates(region, decision, context)
    if decision.candidate is None:
        after = again.timed(decision.before.seconds) if keeps else before
    else:
        after = decision.after
    return replace(decision, recompute=keeps, before=before, after=after)


def _keeps_intermediates(region: Region, decision: Decision, context: Context) -> bool:
    """Whether autograd would save anything but the leaves and the result of a region as it will run.

    Not asked of one with a value that something else reads, too: that is kept anyway.
    """
    if decision.candidate is None and not is_alone(region.nodes, region.output):
        return False
    try:
        problem = problem_of(region, context)
        return saved_bytes(decision.candidate or problem.written, problem.leaves) > 0
    except Exception as error:  # it is then run as it is
        log.warning("%s is not recomputed: %s: %s", region.expression, type(error).__name__, error)
        return False
