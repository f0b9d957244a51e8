"""In training `objective="memory"` asks what little may be saved at nearly the best time."""

from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace

import pytest

from ce_fx.tune.choice import choose
from ce_fx.tune.cost import Cost

candidates = import_module("ce_fx.tune.candidates")


@dataclass(frozen=True)
class Saving:
    cost: Cost
    objective: str = "memory"
    mode: str = "train"
    saves: bool = True
    lean: bool = True
    model: object = None


def costing(seconds, saved=None):
    return SimpleNamespace(cost=Cost(1, 1, seconds, saved=saved))


@pytest.mark.parametrize(("written", "kept"), [(2.0, [1.0, 1.09]), (0.5, []), (0.95, [1.0])])
def test_what_takes_a_tenth_longer_than_the_fastest_is_no_candidate(monkeypatch, written, kept):
    found = [costing(seconds) for seconds in (1.0, 1.09, 1.11, 3.0)]
    asked = []
    monkeypatch.setattr(candidates, "drafts", lambda problem: [problem.objective])
    monkeypatch.setattr(candidates, "_affordable", lambda problem, given: asked.extend(given) or found)
    left = candidates.candidates(Saving(Cost(1, 1, written)))
    assert [one.cost.seconds for one in left] == kept
    assert asked == ["memory", "time"]


@pytest.mark.parametrize(
    ("written", "found", "chosen"),
    [
        ((1.11, 10), [(1.0, 50), (1.05, 20)], (1.05, 20)),  # what is written saves least, and is too slow
        ((1.1, 10), [(1.0, 50), (1.05, 20)], None),  # and not too slow
        ((1.0, 20), [(1.0, 20)], None),  # as little is no gain
        ((1.0, 20), [(1.05, 19)], (1.05, 19)),
        ((2.0, 10), [(1.0, 20), (1.2, 15)], (1.0, 20)),  # nor is a slow candidate taken
        ((1.0, 50), [(1.2, 15)], None),
    ],
)
def test_the_least_that_is_saved_at_no_more_than_a_tenth_over_the_best_time(monkeypatch, written, found, chosen):
    ways = sorted((costing(*each) for each in found), key=lambda one: one.cost.saved)
    monkeypatch.setattr(candidates, "drafts", lambda problem: [])
    monkeypatch.setattr(candidates, "_affordable", lambda problem, given: ways)
    taken = choose(Saving(costing(*written).cost), False).candidate
    assert (taken and (taken.cost.seconds, taken.cost.saved)) == chosen
