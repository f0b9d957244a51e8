"""Choices that are remembered: for whom they hold, and what a second process does."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import ce_fx
from ce_fx.tune import remembered
from tests.tune.choosing import X, layer, report_of

pytestmark = pytest.mark.usefixtures("cache")


def test_a_second_model_plans_and_measures_nothing(clock):
    races = clock(2e-3, 1e-3)
    first = report_of(layer())
    assert remembered.counters == {"chosen": 1}
    done = len(races)
    torch._dynamo.reset()
    second = report_of(layer())
    assert remembered.counters == {"chosen": 1, "remembered": 1} and len(races) == done
    assert dataclasses.replace(first, name="") == dataclasses.replace(second, name="")


def test_kept_is_remembered_too(clock):
    clock(1e-3, 2e-3)
    report_of(layer())
    torch._dynamo.reset()
    assert report_of(layer()).decision == "kept" and remembered.counters["remembered"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"tune": "auto"},
        {"memory_limit": 10**9},
        {"objective": "flops"},
        {"inner": "aot_eager"},
    ],
)
def test_another_option_is_another_choice(clock, change):
    clock(2e-3, 1e-3)
    report_of(layer())
    torch._dynamo.reset()
    report_of(layer(), **change)
    assert remembered.counters == {"chosen": 2}


def test_another_mode_size_or_kind_of_number_is_another_choice(clock):
    clock(2e-3, 1e-3)
    report_of(layer())
    for number, other in enumerate((lambda: report_of(layer(), grad=True), lambda: report_of(layer("cp")))):
        torch._dynamo.reset()
        other()
        assert remembered.counters == {"chosen": number + 2}
    torch._dynamo.reset()
    with torch.no_grad():
        ce_fx.optimize(layer().double(), (torch.randn(X).double(),), tune=True)
    assert remembered.counters == {"chosen": 4}


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.update(plans=[]),
        lambda data: data.update(plans=[{"tree": [0, 1], "ways": {}, "channels_last": False, "method": "x"}]),
        lambda data: data.pop("seconds"),
        lambda data: data["plans"][0].update(tree="nonsense"),
        lambda data: data["plans"][0].update(ways={"x": "taps"}),
    ],
)
def test_a_choice_that_does_not_fit_is_made_anew(clock, cache, edit):
    clock(2e-3, 1e-3)
    report_of(layer())
    (file,) = (cache / "choice").iterdir()
    content = json.loads(file.read_text())
    edit(content["data"])
    file.write_text(json.dumps(content))
    torch._dynamo.reset()
    assert report_of(layer()).decision == "rewritten"
    assert remembered.counters == {"chosen": 2}


SCRIPT = """
    import torch, ce_fx
    from ce_fx.tune import remembered
    from tests.models import factorized_conv

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = factorized_conv(16, 16, rank=0.5)
    with torch.no_grad():
        fast = ce_fx.optimize(model, (torch.randn(2, 16, 20, 20),), tune=True)
    print(dict(remembered.counters), ce_fx.report(fast).layers[0].plan)
"""


@pytest.mark.slow
def test_a_second_process_plans_and_measures_nothing(cache):
    """The calibration and the choice of the first are found on disk; both run the same plan."""
    environment = {**os.environ, "CE_FX_CACHE_DIR": str(cache)}

    def run():
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    first = run()
    if not (cache / "choice").exists():
        pytest.skip("this machine is too noisy to keep a choice")
    second = run()
    assert first.startswith("{'chosen': 1}") and second.startswith("{'remembered': 1}")
    assert first.partition("}")[2] == second.partition("}")[2]
