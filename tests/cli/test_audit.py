"""`ce-fx audit` on what it should accept."""

import json
import sys

import pytest
import torch

import ce_fx
from ce_fx import cli
from ce_fx.cli import inputs, models
from ce_fx.report import lines

X = ["--input", "2x3x16x16"]


def printed(capsys, *arguments):
    assert cli.main(["audit", *arguments, "--objective", "flops"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("model", ["nets_here:Net", "nets_here.py:Net", "./nets_here.py:Net", "nets_here:MODEL"])
def test_a_model_by_name_or_file(folder, capsys, model):
    out = printed(capsys, model, *X)
    assert out.startswith("ce_fx audit: Net, forward, eval, no grad, float32, cpu") and "mix" in out


def test_an_absolute_path(folder, capsys):
    assert "stem" in printed(capsys, f"{folder / 'nets_here.py'}:Net", *X)


def test_the_factory_may_bring_inputs(folder, capsys):
    assert "2x3x16x16" in printed(capsys, "nets_here:with_inputs")
    assert "4x3x16x16" in printed(capsys, "nets_here:with_inputs", "--input", "4x3x16x16")


def test_arguments_of_the_factory(folder, capsys):
    narrow, wide = (printed(capsys, "nets_here:Net", *X, "--kwargs", f'{{"width": {n}}}') for n in (8, 16))
    assert narrow != wide


def test_scalars_keywords_and_integers(folder, capsys):
    assert "stem" in printed(capsys, "nets_here:Net", *X, "--input", "float:0.5", "--input", "mask=scalar")
    assert "stem" in printed(capsys, "nets_here:Net", *X, "--input", "scale=int:2", "--input", "mask=none")
    assert "head" in printed(capsys, "nets_here:Tokens", "--input", "2x5:int64:50")


def test_training_counts_more(folder, capsys):
    assert "forward + backward" in printed(capsys, "nets_here:Net", *X, "--train")


def test_an_exported_program_has_its_inputs_with_it(folder, capsys):
    model = models.load("nets_here:Net").model
    program = torch.export.export(model.eval(), (torch.randn(2, 3, 16, 16),))
    torch.export.save(program, "net.pt2")
    out = printed(capsys, "net.pt2")
    assert "stem" in out and "2x3x16x16" in out and "eval" in out
    assert "forward + backward" in printed(capsys, "net.pt2", "--train")


def test_a_file_gets_the_format_of_its_name(folder, capsys):
    assert printed(capsys, "nets_here:Net", *X, "--output", "out.json") == ""
    assert json.loads((folder / "out.json").read_text())["layers"][0]["name"] == "stem"
    printed(capsys, "nets_here:Net", *X, "--output", "out.txt")
    assert (folder / "out.txt").read_text().startswith("ce_fx audit: Net")
    assert json.loads(printed(capsys, "nets_here:Net", *X, "--format", "json"))["flops_before"] > 0


def test_sorts_are_those_of_the_report():
    assert cli.audit.SORTS == lines.SORTS


@pytest.mark.parametrize("kind", sorted(cli.audit.FORMATS))
def test_every_format_is_one_of_the_report(kind):
    assert callable(getattr(ce_fx.Report, cli.audit.FORMATS[kind]))


def test_options_reach_optimize(folder, capsys, monkeypatch):
    asked = {}
    audit = ce_fx.audit

    def spy(model, args, kwargs=None, train=None, **options):
        asked.update(options)
        return audit(model, args, kwargs, train, **options)

    monkeypatch.setattr(ce_fx, "audit", spy)
    printed(capsys, "nets_here:Net", *X, "--no-tune", "--fold", "--quiet", "--memory-limit", "1.5M", "--no-dynamic")
    assert asked == {
        "objective": "flops",
        "tune": False,
        "fold": True,
        "verbose": False,
        "memory_limit": 3 << 19,
        "dynamic": False,
    }


def test_what_shapes_the_table_reaches_the_report(folder, capsys):
    rows = ["--sort", "name", "--min-gain", "1", "--depth", "1", "--plans"]
    out = printed(capsys, "ce_fx.cli.demo_network:Demo", "--input", "1x64x8x8", *rows)
    assert out.index("\nhead ") < out.index("\ntt1 ") and "as written: " in out


def test_formats_print(folder, capsys):
    assert printed(capsys, "nets_here:Net", *X, "--format", "csv").startswith("schema,name,")
    assert "| stem" in printed(capsys, "nets_here:Net", *X, "--format", "md")
    assert printed(capsys, "nets_here:Net", *X, "--output", "a.html") == ""
    assert "</html>" in (folder / "a.html").read_text()


def test_weights_that_are_too_large_to_be_made(folder, capsys):
    """A terabyte of them."""
    width = 1 << 36
    out = printed(capsys, "nets_here:Net", *X, "--kwargs", f'{{"width": {width}}}', "--device", "meta")
    assert "stem" in out


def test_threads_are_set(folder, capsys):
    assert "cpu 1 threads" in printed(capsys, "nets_here:Net", *X, "--threads", "1")


@pytest.mark.parametrize(
    ("word", "shape", "dtype"),
    [
        ("8x3", (8, 3), torch.float32),
        ("8,3", (8, 3), torch.float32),
        ("(8,3)", (8, 3), torch.float32),
        ("7", (7,), torch.float32),
        ("scalar:half", (), torch.float16),
        ("2x2:bf16", (2, 2), torch.bfloat16),
        ("2x2:torch.long", (2, 2), torch.int64),
        ("2x2:uint8:9", (2, 2), torch.uint8),
        ("2x2:bool", (2, 2), torch.bool),
        ("2x2:complex64", (2, 2), torch.complex64),
        ("2x2:float8_e4m3fn", (2, 2), torch.float8_e4m3fn),
    ],
)
def test_words_for_tensors(word, shape, dtype):
    value = inputs.value_of(word, torch.device("cpu"))
    assert value.shape == shape and value.dtype == dtype


def test_integers_are_indices_that_tables_have():
    assert inputs.value_of("4x4:int64", torch.device("cpu")).unique().tolist() == [1]
    values = inputs.value_of("100:int32:3", torch.device("cpu"))
    assert set(values.tolist()) == {0, 1, 2}
    assert inputs.value_of("3:bool", torch.device("cpu")).all()


@pytest.mark.parametrize(
    ("word", "value"), [("int:3", 3), ("float:0.5", 0.5), ("bool:true", True), ("str:a:b", "a:b"), ("none", None)]
)
def test_words_for_python_values(word, value):
    assert inputs.value_of(word, torch.device("cpu")) == value


def test_ctrl_c_while_planning_prints_what_is_known(folder, capsys, monkeypatch):
    from ce_fx import rewrite

    module = sys.modules[rewrite.__module__]
    decide, seen = module.decide, []

    def interrupted(region, context):
        seen.append(region)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return decide(region, context)

    monkeypatch.setattr(module, "decide", interrupted)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["audit", "ce_fx.cli.demo_network:Demo", "--input", "1x64x16x16", "--objective", "flops"]) == 130
    out, err = capsys.readouterr()
    assert "1 rewritten, 2 kept" in out and "planning was stopped by Ctrl-C" in out
    assert err.splitlines()[-1] == "ce-fx: stopped; 2 of 3 layers were not planned"
    assert len(seen) == 2


def test_what_was_planned_before_ctrl_c_runs(monkeypatch):
    from ce_fx import rewrite
    from ce_fx.cli.demo_network import Demo

    module = sys.modules[rewrite.__module__]
    decide, seen = module.decide, []

    def interrupted(region, context):
        seen.append(region)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return decide(region, context)

    monkeypatch.setattr(module, "decide", interrupted)
    model, x = Demo().eval(), torch.randn(1, 64, 16, 16)
    fast = ce_fx.optimize(model, objective="flops")
    with torch.no_grad():
        with pytest.warns(UserWarning, match="stopped by Ctrl-C"):
            y = fast(x)
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    assert [layer.decision for layer in ce_fx.report(fast).layers] == ["rewritten", "kept", "kept"]
