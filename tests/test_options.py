"""Options are one frozen record; a mistake is told at once, with the cure."""

import copy
import dataclasses
import pickle

import pytest

import ce_fx
from ce_fx.options import OBJECTIVES, Options

GOOD = {
    "objective": OBJECTIVES,
    "tune": ("auto", True, False),
    "memory_limit": (None, 1, 1 << 40),
    "checkpoint": (True, False),
    "fold": (True, False),
    "verify": (True, False),
    "dynamic": (None, True, False),
    "fullgraph": (True, False),
    "inner": ("eager", "inductor", print),
    "inner_options": (None, {}, {"max_autotune": True}),
    "mode": (None, "max-autotune"),
    "verbose": (None, True, False),
}

BAD = {
    "objective": ("speed", None, 1, "FLOPS"),
    "tune": ("never", None, 1.5),
    "memory_limit": (0, -1, True, 1e9, "1GB"),
    "checkpoint": (None, "yes", 1),
    "fold": (None, 1),
    "verify": (None, "auto"),
    "dynamic": ("auto", 1),
    "fullgraph": (None, 0),
    "inner": (None, 3),
    "inner_options": ([("a", 1)], "max_autotune"),
    "mode": (1, True),
    "verbose": ("yes", 1),
}


@pytest.mark.parametrize(("given", "tune"), [("0", False), ("1", True), ("auto", "auto")])
def test_the_environment_sets_the_default_of_tune(given, tune, monkeypatch):
    monkeypatch.setenv("CE_FX_TUNE", given)
    assert Options.of({}).tune == tune and Options.of({"tune": True}).tune is True


def test_a_bad_default_of_tune_is_an_error_that_says_what_is_allowed(monkeypatch):
    monkeypatch.setenv("CE_FX_TUNE", "maybe")
    with pytest.raises(ce_fx.CeFxError, match="auto, 1, 0"):
        Options.of({})


def test_defaults_are_those_of_the_contract(monkeypatch):
    monkeypatch.delenv("CE_FX_TUNE")
    assert Options.of({}) == Options()
    assert Options().to_dict() == {
        "objective": "time",
        "tune": "auto",
        "memory_limit": None,
        "checkpoint": False,
        "fold": False,
        "verify": True,
        "dynamic": None,
        "fullgraph": False,
        "inner": "eager",
        "inner_options": None,
        "mode": None,
        "verbose": None,
    }


def test_the_tables_of_this_file_cover_every_option():
    assert set(GOOD) == set(BAD) == set(Options().to_dict())


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_good_values_are_kept(name, value):
    options = Options.of({name: value})
    assert options.to_dict() == {**Options().to_dict(), name: value}
    assert Options.of(options.to_dict()) == options


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_values_are_named_with_what_is_allowed(name, value):
    with pytest.raises(ce_fx.CeFxError) as caught:
        Options.of({name: value})
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert message.startswith(f"{name} must be ") and message.endswith(f", not {value!r}")


def test_unhashable_values_are_refused_like_any_other():
    with pytest.raises(ce_fx.CeFxError, match=r"objective must be .*, not \['flops'\]"):
        Options.of({"objective": ["flops"]})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("objectiv", "did you mean 'objective'?"),
        ("memory", "did you mean 'memory_limit'?"),
        ("inner_option", "did you mean 'inner_options'?"),
        ("fullgraf", "did you mean 'fullgraph'?"),
        ("zzz", "the options are objective, tune, memory_limit, checkpoint, fold, verify, dynamic, fullgraph, inner"),
    ],
)
def test_an_unknown_option_names_the_nearest(name, hint):
    with pytest.raises(ce_fx.CeFxError) as caught:
        Options.of({name: True})
    assert str(caught.value).startswith(f"unknown option {name!r}: ") and hint in str(caught.value)


def test_options_are_frozen_and_copied():
    given = {"inner_options": {"max_autotune": True}}
    options = Options.of(given)
    given["inner_options"]["max_autotune"] = False
    given["objective"] = "flops"
    assert options.objective == "time"
    assert options.inner_options["max_autotune"] is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.objective = "flops"
    with pytest.raises(TypeError):
        options.inner_options["max_autotune"] = False
    options.to_dict()["inner_options"].clear()
    assert dict(options.inner_options) == {"max_autotune": True}


def test_a_dict_of_options_can_be_copied_and_pickled():
    values = Options.of({"inner_options": {"a": 1}, "memory_limit": 10}).to_dict()
    for twin in (copy.deepcopy(values), pickle.loads(pickle.dumps(values))):
        assert Options.of(twin) == Options.of(values)
