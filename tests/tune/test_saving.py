"""In training `objective="memory"` asks what little may be saved at nearly the best time."""

from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace

import pytest

from ce_fx.tune.cost import Cost

candidates = import_module("ce_fx.tune.candidates")


@dataclass(frozen=True)
class Saving:
    cost: Cost
    objective: str = "memory"
    saves: bool = True


def costing(seconds):
    return SimpleNamespace(cost=Cost(1, 1, seconds))


@pytest.mark.parametrize(("written", "kept"), [(2.0, [1.0, 1.09]), (0.5, []), (0.95, [1.0])])
def test_what_takes_a_tenth_longer_than_the_fastest_is_no_candidate(monkeypatch, written, kept):
    found = [costing(seconds) for seconds in (1.0, 1.09, 1.11, 3.0)]
    asked = []
    monkeypatch.setattr(candidates, "drafts", lambda problem: [problem.objective])
    monkeypatch.setattr(candidates, "_affordable", lambda problem, given: asked.extend(given) or found)
    left = candidates.candidates(Saving(Cost(1, 1, written)))
    assert [one.cost.seconds for one in left] == kept
    assert asked == ["memory", "time"]
