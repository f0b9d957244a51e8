"""The table of doors says what it measures: a wrong result fails, a small one passes, and errors are reasons."""

import pytest
import torch
from torch import nn

from benchmarks import doors
from benchmarks.doors import Cell, attempt, calibrated_only, error_of, table
from benchmarks.doors_models import Doored, models


def chain():
    return nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 2, bias=False))


SMALL = Doored("chain", chain, (((48, 12),), ((20, 12),), ((31, 12),)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("mode", doors.MODES)
@pytest.mark.parametrize("door", ["optimize", "eager"])
def test_a_cell(door, mode):
    cell = attempt(SMALL, door, mode, 1)
    assert cell.passed and not cell.reason and cell.gain > 0 and cell.first[0] > 0
    assert cell.graphs == 1
    assert (cell.first[1] is None) == (door == "optimize")


@pytest.mark.parametrize("mode", doors.MODES)
def test_a_wrong_result_does_not_pass(mode, monkeypatch):
    monkeypatch.setattr(doors, "opened", lambda door, model, mode: lambda x: model(x) * 1.02)
    cell = attempt(SMALL, "optimize", mode, 1)
    assert not cell.passed and cell.reason.startswith("error ")


def test_wrong_gradients_do_not_pass(monkeypatch):
    def wrong(door, model, mode):
        return lambda x: model(x).detach() + 1.02 * (model(x) - model(x).detach())

    monkeypatch.setattr(doors, "opened", wrong)
    assert not attempt(SMALL, "optimize", "train", 1).passed


def test_what_a_door_raises_is_its_reason(monkeypatch):
    def raises(door, model, mode):
        raise RuntimeError("no such door\nat all")

    monkeypatch.setattr(doors, "opened", raises)
    cell = attempt(SMALL, "optimize", "eval", 1)
    assert not cell.passed and cell.reason == "RuntimeError: no such door"


def test_an_inner_backend_that_fails_alone_is_no_failure_of_ours(monkeypatch):
    calls = []

    def fails_later(run, model, inputs, mode):
        calls.append(run)
        if len(calls) > 1:
            raise ArithmeticError("torch's own")
        return 1.0

    monkeypatch.setattr(doors, "first_call", fails_later)
    cell = attempt(SMALL, "eager", "eval", 1)
    assert cell.passed and cell.gain is None and cell.reason == "eager alone fails: ArithmeticError"
    assert "pass, 1, 1.0 s, eager alone fails: ArithmeticError" in table([cell])


def test_a_cell_in_which_both_fail_says_so(monkeypatch):
    def fails(run, model, inputs, mode):
        raise ArithmeticError("torch's own\nfor all that is compiled")

    monkeypatch.setattr(doors, "first_call", fails)
    cell = attempt(SMALL, "eager", "eval", 1)
    assert not cell.passed
    assert cell.reason == "ArithmeticError: torch's own; eager alone fails: ArithmeticError"
    assert attempt(SMALL, "optimize", "eval", 1).reason == "ArithmeticError: torch's own"


def test_errors_are_relative_by_norm_and_the_worst_counts():
    one = torch.ones(4, dtype=torch.float64)
    assert error_of([one * 1.5], [one]) == pytest.approx(0.5)
    assert error_of([one, one * 1.1, one], [one, one, one]) == pytest.approx((4 * 0.01 / 8) ** 0.5)
    assert error_of([one], [one]) == 0


def test_in_bfloat16_the_error_is_that_of_all_inputs(monkeypatch):
    """Of one input it may be anything: a few outputs are rounded up or down."""
    monkeypatch.setattr(doors, "results", lambda run, model, inputs, mode: [run(*inputs)])
    given = [(torch.full((4,), float(n)),) for n in range(12)]

    def off(by):
        return (lambda x: 1 + torch.tensor(by(int(x[0]))).double().expand(4)), None

    def exact(x):
        return torch.ones(4).double()

    error, bar = doors.compared(off(lambda n: 0.02 if n == 5 else 0.01), off(lambda n: 0.01), exact, given, "bf16")
    assert bar == pytest.approx(0.015) and 0.01 < error < bar
    error, bar = doors.compared(off(lambda n: 0.019), off(lambda n: 0.01), exact, given, "bf16")
    assert error == pytest.approx(0.019) and error > bar


def test_what_was_chosen_before_is_forgotten():
    place = doors.folder()
    for name in ("calibration", "choice"):
        (place / name).mkdir()
        (place / name / "one.json").write_text("{}")
    with calibrated_only():
        assert [each.name for each in place.iterdir()] == ["calibration"]


def test_the_table_has_a_line_for_each_model_and_mode():
    cells = [
        Cell("net", "optimize", "eval", 1e-7, True, 1, 1.5, (2.0, None)),
        Cell("net", "inductor", "eval", 1e-7, True, 2, 1.02, (40.0, 20.0)),
        Cell("net", "optimize", "train", reason="error 1.0e-02 above 1.0e-05"),
    ]
    lines = table(cells).splitlines()
    assert lines[0].split() == ["model", "mode", "optimize", "eager", "inductor"]
    assert "pass, 1, 1.50x, 2.0 s" in lines[1] and "pass, 2, 1.02x, 40 s (20 s)" in lines[1]
    assert "error 1.0e-02 above 1.0e-05" in lines[2]


def test_what_has_passed_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(doors, "models", lambda: [SMALL])
    monkeypatch.setattr(doors, "time_model", lambda *args, **options: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    runs = []

    def once(one, door, mode, rounds):
        runs.append((door, mode))
        return Cell(one.name, door, mode, passed=door == "optimize")

    monkeypatch.setattr(doors, "attempt", once)
    place = tmp_path / "cells.json"
    arguments = ["--mode", "train", "eval", "--door", "optimize", "eager", "--json", str(place)]
    found = doors.main(arguments)
    assert [(cell.mode, cell.door) for cell in found] == [
        ("eval", "optimize"),
        ("eval", "eager"),
        ("train", "optimize"),
        ("train", "eager"),
    ]
    runs.clear()
    assert len(doors.main(arguments)) == 4 and runs == [("eager", "train"), ("eager", "eval")]


def test_the_models_are_those_of_the_table():
    names = [one.name for one in models()]
    assert len(set(names)) == len(names) == 10
    assert all(len(one.shapes) == 3 for one in models())
