"""The paper's workloads as they are measured: the tables say what was, and nothing is run twice."""

import json
from dataclasses import replace

import pytest
import torch

import ce_fx
from benchmarks.paper import __main__ as paper
from benchmarks.paper import cells, decomposed
from benchmarks.paper import measure as measuring
from benchmarks.paper.again import Orders
from benchmarks.paper.cells import Cell, Settings
from benchmarks.paper.measure import Bench, measure
from benchmarks.paper.nets import ResNet
from benchmarks.paper.peak import Live, largest_batch, peak_bytes, standing
from benchmarks.paper.text import claims, table
from benchmarks.paper.ways import DENSE, LEFT, LEFT_CHECKPOINTED, REBUILT, way
from benchmarks.paper.workloads import workloads
from ce_fx import decide

# --- tables


def cell(mode="train", **options):
    rounds = {LEFT: [2.0, 4.0], REBUILT: [1.0, 1.0], DENSE: [0.5, 0.5], "ce_fx time": [1.25, 1.25]}
    both = {LEFT: (2000, 3000), REBUILT: (300, 400), DENSE: (300, 400), "ce_fx time": (300, 500)}
    peaks = {name: ((2, half), (4, whole)) for name, (half, whole) in both.items()}
    notes = {LEFT_CHECKPOINTED: "not run"}
    return Cell("Net", "rtt", 0.05, mode, "4 x 3, cpu", "a machine", 2, rounds, peaks, {}, notes, **options)


def test_the_table():
    lines = table([cell()], 10_000).splitlines()
    assert lines[1].startswith("Net rtt 5 % train: 2 layers, 4 x 3, cpu")
    ours = next(line for line in lines if line.strip().startswith("ce_fx time"))
    assert ours.split() == ["ce_fx", "time", "1250.0", "2.40x", "0.80x", "<", "0.40x", "0.0", "99"]
    assert any(line.strip().startswith(LEFT_CHECKPOINTED) and line.endswith("not run") for line in lines)


def test_the_paper_beside_what_was_measured():
    train, inference, *_ = claims([cell(), cell("inference")], 10_000).splitlines()[1:]
    for text in ("1.6-2.8x", "2.40x", "0.80x <", "2-10x", "5.5x (ce_fx time)", "dense is faster, 2.50x"):
        assert text in train
    assert "1.1-1.3x" in inference


def test_what_falls_short_is_counted():
    last = table([cell()], 10_000).splitlines()[-2:]
    assert last[0] == "ce_fx behind rebuilt: 1 of 1, worst 0.80x (Net rtt 5 % train, ce_fx time)"
    assert last[1].startswith("ce_fx behind left to right: 0 of 1, worst 2.40x")
    lean = cell()
    lean.peaks[LEFT_CHECKPOINTED] = ((2, 100), (4, 150))  # 398 examples
    lines = claims([lean, cell("inference")], 10_000).splitlines()
    assert "0.2x (ce_fx time)" in lines[1]
    for text in (
        "train: behind rebuilt: 1 of 1, worst 0.80x",
        "train: below 1.6x over left: 0 of 1, worst 2.40x",
        "train: below 2.8x over left: 1 of 1, worst 2.40x",
        "train: batch below 2x that of left to right: 0 of 1, worst 5.50x",
        "train: batch below 10x that of left to right: 1 of 1, worst 5.50x",
        "train: batch below 1x that of left to right, checkpointed: 1 of 1, worst 0.25x",
        "inference: below 1.3x over left: 0 of 1",
    ):
        assert any(line.startswith(text) for line in lines), text


def test_bytes_of_what_was_not_run_are_in_the_table():
    one = cell()
    del one.rounds[LEFT]
    one.notes[LEFT] = "not run"
    lines = table([one], 10_000).splitlines()
    line = next(line for line in lines if line.strip().startswith(LEFT))
    assert line.split() == [*LEFT.split(), "0.0", "18", "not", "run"]
    assert lines[-1] == "ce_fx behind left to right: not measured"


def test_a_cell_that_failed_says_why():
    failed = Cell("Net", "rtt", 0.05, "train", "here", "a machine", error="RuntimeError: no memory")
    assert "RuntimeError: no memory" in table([failed], 1)
    assert len(claims([failed], 1).splitlines()) == 1


def test_what_was_measured_is_not_run_again(tmp_path, monkeypatch, capsys):
    runs = []

    def once(workload, form, rate, mode, settings):
        runs.append((workload.name, form, rate, mode))
        notes = dict.fromkeys(settings.chosen(mode), "not run")
        error = "x" * (mode == "train")
        return Cell(workload.name, form, rate, mode, settings.where(workload), settings.by(), notes=notes, error=error)

    monkeypatch.setattr(paper, "measure", once)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    place = tmp_path / "cells.json"
    arguments = ["--only", "ResNet-34", "--forms", "rtt", "--rates", "5", "20", "--tune", "off", "--json", str(place)]
    assert len(paper.main(arguments)) == 4 and len(runs) == 4
    runs.clear()
    paper.main(arguments)
    assert [mode for *_, mode in runs] == ["train", "train"]
    assert len(json.loads(place.read_text())) == 4
    assert "ResNet-34 rtt 20 % inference" in capsys.readouterr().out
    runs.clear()
    assert len(paper.main([*arguments, "--rounds", "3"])) == 4 and len(runs) == 4
    monkeypatch.setattr(cells, "machine", lambda device: "another machine")
    shown = paper.main(arguments)
    assert len(runs) == 8 and all(one.by.startswith("another machine, 7 rounds") for one in shown)
    kept = json.loads(place.read_text())
    assert len(kept) == 2 + 2 + 4 and len({one["by"] for one in kept}) == 3


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize("workload", workloads(), ids=lambda workload: workload.name)
def test_quick(workload, mode, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    only = ["--only", workload.name, "--mode", mode, "--ways", "left to right$|rebuilt|dense|time"]
    (measured,) = paper.main(["--quick", "--rounds", "1", "--tune", "off", *only])
    assert not measured.error and measured.layers
    assert set(measured.rounds) == set(measured.peaks) == {LEFT, REBUILT, DENSE, "ce_fx time"}
    assert max(measured.errors.values()) < 1e-2
    for points in measured.peaks.values():
        assert [batch for batch, _ in points] == ([4, 2] if mode == "train" else [2])
        assert points == tuple(sorted(points, reverse=True)) and points[-1][1] > 0
    shown = capsys.readouterr().out
    assert f"{workload.name} {measured.form} 10 % {mode}" in shown
    assert all(f" {points[-1][1] / 2**20:.1f} " in shown for points in measured.peaks.values()), "of the batch timed"


def test_quick_with_inductor():
    settings = Settings("quick", rounds=1, inductor=True, ways="inductor|^(rebuilt|dense)$", tune=False)
    one = measure(workloads()[0], "rtt", 0.1, "inference", settings)
    assert set(one.rounds) == {REBUILT, DENSE, "rebuilt inductor", "dense inductor", "ce_fx inductor"}
    assert max(one.errors.values()) < 1e-3
    line = next(line for line in table([one], 10**9).splitlines() if line.strip().startswith("ce_fx inductor"))
    assert "x over rebuilt inductor" in line and "x over dense inductor" in line


def test_a_rebuilt_network_is_one_graph_for_inductor():
    model, _ = workloads()[0].factorise(ResNet((1,), width=8), "rtt", 0.5)
    batches = workloads()[0].sizes["quick"].inputs(2)
    torch._dynamo.reset()
    found = torch._dynamo.explain(way(REBUILT, model, batches, "train").run)(*batches[0])
    assert found.graph_break_count == 0


def small_network():
    torch.manual_seed(0)
    return workloads()[0].factorise(ResNet((1, 1), width=8), "rtt", 0.2)[0].train()


@pytest.mark.parametrize("name", [LEFT, LEFT_CHECKPOINTED, REBUILT, DENSE, "ce_fx flops"])
def test_a_line_through_two_batches_tells_the_bytes_of_a_third(name):
    model, points = small_network(), []
    for batch in (2, 4, 8):
        inputs = workloads()[0].sizes["cpu"].inputs(batch)
        torch._dynamo.reset()
        one = way(name, model, inputs, "train", tune=False)
        one.step()
        points.append((batch, peak_bytes(one.step) + standing(one.model, inputs[0])))
    (_, fewer), (_, more), (_, true) = points
    assert 0.95 * true <= more + 2 * (more - fewer) <= true
    assert abs(largest_batch(points[:2], true) - 8) <= 1


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_left_to_right_is_timed_on_two_examples_where_it_takes_too_much(mode):
    settings = Settings("quick", rounds=1, batch=8, patience=60.0, ways="left to right|rebuilt", tune=False)
    whole = measure(workloads()[0], "rcp", 0.1, mode, settings)
    slow = [LEFT, LEFT_CHECKPOINTED] if mode == "train" else [LEFT]
    assert not whole.notes and all(name in whole.errors for name in slow)
    long = measure(workloads()[0], "rcp", 0.1, mode, replace(settings, patience=0.0))
    memory = min(long.peaks[name][-1][1] for name in slow) - 1
    large = measure(workloads()[0], "rcp", 0.1, mode, replace(settings, memory=memory))
    for part, reason in ((long, "more than 0 s"), (large, "a batch takes")):
        assert list(part.rounds) == [*slow, REBUILT] and list(part.errors) == [REBUILT]
        for name in slow:
            assert len(part.rounds[name]) == 1 and part.notes[name].startswith(f"4 times 2 examples: {reason}")
            pairs = list(zip(part.peaks[name], whole.peaks[name], strict=True))
            assert all(one == other and a <= b for (one, a), (other, b) in pairs), "without what ops take within"


@pytest.mark.parametrize("name", [LEFT, LEFT_CHECKPOINTED])
def test_bytes_that_are_counted_without_a_run_are_those_of_a_run(name):
    size = workloads()[0].sizes["quick"]
    bench = Bench(small_network(), size, "train", Settings("quick"))
    inputs = size.inputs(4)
    one = way(name, bench.model, inputs, "train")
    with Live() as live:
        one.step()
    assert bench.bytes_by_hand(name, 4) == live.most + standing(one.model, inputs[0])


def test_left_to_right_is_not_run_where_two_examples_take_too_much():
    settings = Settings("quick", rounds=1, batch=8, memory=1, ways="left to right$|rebuilt", tune=False)
    one = measure(workloads()[0], "rcp", 0.1, "train", settings)
    assert set(one.rounds) == {REBUILT} and one.notes[LEFT].startswith("not run: a batch takes 0.0")
    assert [count for count, _ in one.peaks[LEFT]] == [4, 8]
    line = next(line for line in table([one], 10**9).splitlines() if line.strip().startswith(LEFT))
    assert line.split()[3] == f"{one.peaks[LEFT][-1][1] / 2**20:.1f}"
    alone = measure(workloads()[0], "rcp", 0.1, "train", replace(settings, ways="left to right$"))
    assert not alone.rounds and alone.peaks == {LEFT: one.peaks[LEFT]}


@pytest.mark.parametrize(("patience", "seconds"), [(4.0, 4 * 2.0), (2.0, 4 * 3.0), (20.0, 4 * 3.0)])
def test_the_first_run_of_two_examples_counts_if_it_decides_or_takes_too_long(monkeypatch, patience, seconds):
    found = iter([3.0, 2.0])
    monkeypatch.setattr(measuring, "seconds_of", lambda step: next(found))
    bench = Bench(small_network(), workloads()[0].sizes["quick"], "train", Settings("quick", patience=patience))
    assert bench.of_two(LEFT, 4) == seconds


def test_the_half_batch_is_evaluated_in_the_same_orders(monkeypatch):
    asked = []
    original = decide.choose
    monkeypatch.setattr(decide, "choose", lambda problem, *rest: asked.append(problem) or original(problem, *rest))
    kept, model = Orders(), small_network()
    plans = []
    for batch, context in ((4, kept.kept), (2, kept.again)):
        torch._dynamo.reset()
        with context(), torch.enable_grad():
            fast = way("ce_fx flops", model, workloads()[0].sizes["quick"].inputs(batch), "train", tune=False)
            fast.step()
        plans.append([(layer.decision, layer.expression) for layer in ce_fx.report(fast.run).layers])
        count = len(asked)
    assert plans[0] == plans[1] and any(decision == "rewritten" for decision, _ in plans[0])
    assert count == len(asked) == len(kept.made)
    kept.made.pop()  # as if the graph had more regions now
    torch._dynamo.reset()
    with kept.again():
        fast = way("ce_fx flops", model, workloads()[0].sizes["quick"].inputs(2), "train", tune=False)
    assert "refused" in [layer.decision for layer in ce_fx.report(fast.run).layers]


def test_a_batch_is_an_axis():
    assert Settings(batch=1).batch_of(workloads()[0]) == 2
    assert Settings(size="full").batch_of(workloads()[0]) == 128


def test_a_kept_cell_is_measured_again_for_ways_that_it_lacks(tmp_path, capsys):
    kept = tmp_path / "cells.json"
    common = ["--quick", "--mode", "inference", "--rounds", "1", "--threads", "1", "--json", str(kept)]
    (first,) = paper.main([*common, "--ways", "^dense$"])
    (second,) = paper.main([*common, "--ways", "^(dense|rebuilt)$"])
    (third,) = paper.main([*common, "--ways", "^rebuilt$"])
    assert (set(first.rounds), set(second.rounds)) == ({"dense"}, {"dense", "rebuilt"})
    assert third == second
    with pytest.raises(SystemExit, match="leave nothing"):
        paper.main([*common, "--forms", "nonesuch"])


def test_bytes_as_options():
    assert paper.bytes_of("24GiB") == 24 * 2**30
    assert paper.bytes_of("1.5 MB") == 1_500_000
    with pytest.raises(paper.argparse.ArgumentTypeError, match="no size"):
        paper.bytes_of("24 apples")


def test_a_trained_network_is_decomposed(capsys):
    pytest.importorskip("sklearn")
    only = ["--forms", "cp", "rtt", "--rates", "50", "--epochs", "2", "--mend", "1"]
    rows = decomposed.main(only)
    assert [row[:2] for row in rows] == [["cp", "50 %"], ["rtt", "50 %"]]
    assert all(0 < float(error) < 1 for row in rows for error in row[3].split(", "))
    assert all(0.2 < float(share) <= 1 for row in rows for share in row[4:])
    assert "dense: accuracy" in capsys.readouterr().out


def test_a_form_that_has_no_such_rate_is_said_to_be_kept():
    pytest.importorskip("sklearn")
    rows = decomposed.main(["--forms", "tt", "--rates", "0.1", "0.9", "--epochs", "1", "--mend", "1"])
    assert rows[0][:3] == ["tt", "0.1 %", "kept"] and rows[0][3].startswith("rate 0.001 is 4 of the dense")
    assert rows[1][2].startswith("kept, 1x") and rows[1][3].startswith("kept, 0.")
