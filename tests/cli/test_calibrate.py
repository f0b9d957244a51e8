"""The command line."""

import pytest
import torch

from ce_fx import cli
from ce_fx.plan.time_model import TimeModel
from ce_fx.tune import calibrate


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A calibration that takes no time and says what it was asked for."""
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    threads = torch.get_num_threads()
    asked = []

    def fake(device, dtype, *, verbose=None, budget=0.0):
        asked.append((device, dtype, budget, torch.get_num_threads()))
        from dataclasses import replace

        return replace(TimeModel.default(device), calibrated=True)

    monkeypatch.setattr(calibrate, "calibrate", fake)
    yield asked
    torch.set_num_threads(threads)


def test_calibrate_measures_what_it_is_asked_for(measured, capsys):
    assert cli.main(["calibrate", "--dtype", "float64", "--threads", "2", "--budget", "3"]) == 0
    assert measured == [(torch.device("cpu"), torch.float64, 3.0, 2)]
    assert "threads 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "float33"], "float33"),
        (["--device", "abacus"], "abacus"),
        (["--threads", "0"], "at least 1"),
        (["--merge", "/nowhere/at/all"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_status_2(measured, capsys, arguments, words):
    assert cli.main(["calibrate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and words in err
    assert not measured


def test_an_integer_dtype_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CE_FX_CACHE_DIR", str(tmp_path))
    assert cli.main(["calibrate", "--dtype", "int32"]) == 2
    assert "floating point" in capsys.readouterr().err


def test_no_command_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2 and "calibrate" in capsys.readouterr().err


def test_nothing_to_merge_is_said(tmp_path, capsys):
    assert cli.main(["calibrate", "--merge", str(tmp_path)]) == 0
    assert "nothing newer" in capsys.readouterr().out


def test_a_machine_that_cannot_be_measured_is_status_1(monkeypatch):
    from ce_fx.plan.time_model import TimeModel
    from ce_fx.tune import calibrate

    monkeypatch.setattr(calibrate, "calibrate", lambda device, dtype, budget: TimeModel.default(device))
    assert cli.main(["calibrate", "--threads", "1"]) == 1
