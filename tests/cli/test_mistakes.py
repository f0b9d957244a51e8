"""Every mistake that a new user makes: one line that says what to do, status 2, no traceback."""

import os

import pytest
import torch

from ce_fx import cli
from ce_fx.cli import models

X = "2x3x16x16"

AUDITS = [
    # the model
    (["nets_her:Net"], ["no module 'nets_her'", "path/to/file.py:factory"]),
    (["no_package.nets:Net"], ["no module 'no_package'"]),
    (["nets_here:Nett"], ["no 'Nett'", "did you mean 'Net'"]),
    (["nets_here:Net.build"], ["no 'Net.build'"]),
    (["nets_here"], ["which function", "nets_here:factory"]),
    (["nets_here.py"], ["which function", "nets_here.py:factory"]),
    (["nets_here:"], ["names no model"]),
    (["resnet18"], ["names no model", "pkg.mod:factory"]),
    (["other.py:Net"], ["no such file"]),
    (["wrong_here:Net"], ["SyntaxError", "wrong_here"]),
    (["wrong_here.py:Net"], ["running wrong_here.py failed", "SyntaxError"]),
    (["needs_here:Net"], ["a_package_that_nobody_has", "install what is missing"]),
    (["needs_here.py:Net"], ["a_package_that_nobody_has"]),
    (["nets_here:broken"], ["raised KeyError: 'config.yaml'", "nets_here.py:"]),
    (["nets_here:leaves"], ["raised SystemExit: 3"]),
    (["nets_here:number"], ["gave something of class int, no torch.nn.Module"]),
    (["nets_here:THREE"], ["of type int", "function or class"]),
    (["weights.pth"], ["holds weights", "torch.export.save"]),
    (["model.pt2"], ["no such file"]),
    # its arguments
    (["nets_here:Net", "--kwargs", "{width: 3}"], ["no JSON", "--kwargs '{"]),
    (["nets_here:Net", "--kwargs", "[3]"], ["must be a JSON object"]),
    (["nets_here:Net", "--kwargs", '{"wdth": 3}'], ["(width=32)", "wdth"]),
    (["nets_here:MODEL", "--kwargs", '{"width": 3}'], ["a model already"]),
    # inputs
    (["nets_here:Net"], ["forward takes (x, scale", "got no input", "--input"]),
    (["nets_here:Net", "--input", "2x4x16x16"], ["to have 3 channels, but got 4", "2x4x16x16", "change --input"]),
    (["nets_here:Net", "--input", "2x3xax16"], ["'2x3xax16' is no shape", "8x3x224x224"]),
    (["nets_here:Net", "--input", "2x3x0x16"], ["a size is 0"]),
    (["nets_here:Net", "--input", f"{X}:flot32"], ["no dtype 'flot32'", "did you mean 'float32'"]),
    (["nets_here:Net", "--input", f"{X}:bfloat16"], ["BFloat16", "change --input"]),
    (["nets_here:Net", "--input", X, "--input", "float:two"], ["'two' is no float"]),
    (["nets_here:Net", "--input", f"{X}:float32:9"], ["bounds integers only"]),
    (["nets_here:Tokens", "--input", "2x5:int64:0"], ["at least 1"]),
    (["nets_here:Net", "--input", X, "--input", "my scale=float:2"], ["'my scale' is no name"]),
    (["nets_here:Net", "--input", X, "--input", "scale=int:1", "--input", "scale=int:2"], ["given twice"]),
    (["nets_here:Net", "--input", X, "--input", "factor=int:1"], ["forward takes", "factor"]),
    (["nets_here:Raises", "--input", X], ["ZeroDivisionError: the model's own"]),
    # the machine
    (["nets_here:Net", "--input", X, "--device", "gpu"], ["'gpu' is no device"]),
    (["nets_here:Net", "--input", X, "--device", "cuda:77"], ["cuda:77 cannot be used here", "--device cpu"]),
    (["nets_here:Net", "--input", X, "--threads", "0"], ["at least 1"]),
    # output and options
    (["nets_here:Net", "--input", X, "--output", "nowhere/out.txt"], ["no folder nowhere"]),
    (["nets_here:Net", "--input", X, "--output", "."], ["is a folder"]),
    (["nets_here:Net", "--input", X, "--format", "json", "--plans"], ["--plans shapes the text table"]),
    (["nets_here:Net", "--input", X, "--output", "x.csv", "--sort", "gain"], ["--sort shapes the text table"]),
    (["nets_here:Net", "--input", X, "--depth", "0"], ["--depth must be at least 1"]),
    (["nets_here:Net", "--input", X, "--min-gain", "-1"], ["--min-gain must be a factor above 0"]),
    (["nets_here:Net", "--input", X, "--inner", "inductr"], ["did you mean 'inductor'"]),
    (["nets_here:Net", "--input", X, "--memory-limit", "lots"], ["no number of bytes", "64M"]),
    (["nets_here:Net", "--input", X, "--train", "--fold"], ["--fold is for serving"]),
    (["nets_here:Net", "--input", X, "--checkpoint"], ["--checkpoint is for training"]),
]


def said(capsys, arguments):
    """The one line on stderr of a command that fails."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1 and err.startswith("ce-fx: ") and "Traceback" not in err
    return err


@pytest.mark.parametrize(("arguments", "words"), AUDITS, ids=[" ".join(a) for a, _ in AUDITS])
def test_audit(folder, capsys, arguments, words):
    err = said(capsys, ["audit", *arguments])
    assert [word for word in words if word not in err] == []


def test_an_unreadable_program(folder, capsys):
    (folder / "empty.pt2").write_bytes(b"PK no program")
    assert "cannot be read as an exported program" in said(capsys, ["audit", "empty.pt2"])
    assert "made already" in said(capsys, ["audit", "empty.pt2", "--kwargs", "{}", "--kwargs", '{"a": 1}'])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_files_without_permission(folder, capsys):
    (folder / "nets_here.py").chmod(0)
    assert "permission denied" in said(capsys, ["audit", "nets_here.py:Net"])
    folder.chmod(0o500)
    assert "permission denied" in said(capsys, ["audit", "x:Net", "--output", "out.txt"])
    folder.chmod(0o700)


def test_a_programs_own_sizes_are_said(folder, capsys):
    model = models.load("nets_here:Net").model
    program = torch.export.export(model.eval(), (torch.randn(2, 3, 16, 16),))
    torch.export.save(program, "net.pt2")
    assert "Guard failed" in said(capsys, ["audit", "net.pt2", "--input", "5x3x16x16"])


EXPLAINS = [
    (["ab,bc->ac"], ["sizes of the 2 operands"]),
    (["ab,bc->ac", "2x3"], ["2 operands, but 1"]),
    (["ab,bc->ac", "2x3", "4x5"], ["'b'", "3", "4"]),
    (["ab,bc->ad", "2x3", "3x5"], ["'d'"]),
    (["ab,bc->ac", "2x3", "3by5"], ["operand 1", "8x64x56x56"]),
    (["bsh,sh->bh|h", "2x3x9", "3x3", "--stride", "two"], ["--stride", "h=2,w=1"]),
    (["bsh,sh->bh|h", "2x3x9", "3x3", "--stride", "w=2"], ["'w'"]),
    (["bsh,sh->bh|h", "2x3x9", "3x3", "--stride", "h=2,2"], ["has no letter"]),
    (["bsh,sh->bh|h", "2x3x9", "3x3", "--padding", "sam"], ["left:right"]),
    (["bsh,sh->bh|h", "2x3x9", "3x3", "--padding", "1:2:3"], ["left:right"]),
    (["ab,bc->ac", "2x3", "3x5", "--dtype", "float33"], ["no dtype 'float33'"]),
    (["ab,bc->ac", "2x3", "3x5", "--threads", "-1"], ["at least 1"]),
]


@pytest.mark.parametrize(("arguments", "words"), EXPLAINS, ids=[" ".join(a) for a, _ in EXPLAINS])
def test_explain(folder, capsys, arguments, words):
    err = said(capsys, ["explain", *arguments])
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize("arguments", [[], ["audti"], ["audit"], ["audit", "x:y", "--sort", "speed"]])
def test_options_that_do_not_parse_are_told_in_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    command = "ce-fx audit" if len(arguments) > 1 or arguments == ["audit"] else "ce-fx"
    assert stop.value.code == 2 and line.startswith(f"{command}: ") and line.endswith(f"see {command} --help")


def test_traceback_is_shown_when_asked_for(folder):
    with pytest.raises(cli.Mistake, match="KeyError"):
        cli.main(["audit", "nets_here:broken", "--traceback"])


def test_a_bug_says_that_it_is_one(folder, capsys, monkeypatch):
    import ce_fx

    monkeypatch.setattr(ce_fx, "audit", lambda *args, **kwargs: {}["nothing"])
    assert cli.main(["audit", "nets_here:with_inputs"]) == 1
    err = capsys.readouterr().err
    assert "KeyError" in err and "a bug of ce_fx" in err and len(err.splitlines()) == 1


def test_an_error_of_ours_on_good_input_is_no_mistake_of_the_users(folder, capsys, monkeypatch):
    import ce_fx

    def fails(*args, **kwargs):
        raise RuntimeError("planted")

    monkeypatch.setattr(ce_fx, "audit", fails)
    (folder / "good.py").write_text("from torch import nn\ndef factory():\n    return nn.Linear(4, 2)\n")
    assert cli.main(["audit", "good.py:factory", "--input", "3x4"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: planted" in line and "a bug of ce_fx" in line
