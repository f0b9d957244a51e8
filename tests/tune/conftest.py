"""What tests of choices have in common: a cache of their own, and a clock that says what they want."""

from importlib import import_module

import pytest

from ce_fx.tune import choice, remembered
from ce_fx.tune.race import Race
from tests.tune.choosing import without_calibration


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and no calibration: these tests are about choices."""
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(import_module("ce_fx.rewrite"), "time_model", without_calibration)
    remembered.counters.clear()
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """A clock that says what a test wants: seconds of (as written, any other), and the noise."""
    races = []

    def fake(written, others, noise=0.0):
        def race(runs, device, budget):
            for run in runs:
                run()
            races.append(len(runs))
            seconds = (written, *[others] * (len(runs) - 1))
            return Race(seconds, noise, tuple(written / one for one in seconds))

        monkeypatch.setattr(choice, "race", race)
        return races

    return fake
