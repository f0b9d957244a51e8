"""The paper's workloads: evaluations by hand are the layer's, bytes are exact, and the tables say what was measured."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import ce_fx
from benchmarks.doors_models import Conformer
from benchmarks.paper import __main__ as paper
from benchmarks.paper import cells, decomposed
from benchmarks.paper.again import Orders
from benchmarks.paper.cells import Cell, Settings, written_bytes
from benchmarks.paper.nets import ResNet
from benchmarks.paper.orders import checkpointed, left_to_right, rebuilt
from benchmarks.paper.peak import highest, is_grown, largest_batch, peak_bytes, saved_bytes, standing
from benchmarks.paper.text import claims, table
from benchmarks.paper.ways import DENSE, LEFT, LEFT_CHECKPOINTED, REBUILT, names, results, way
from benchmarks.paper.workloads import over_time, speech, workloads
from ce_fx import decide

# --- orders by hand

SHAPES = {0: (3, 5, 8), 1: (3, 8, 11), 2: (2, 8, 7, 6), 3: (2, 8, 5, 4, 6)}
LAYERS = [(form, dims) for form, each in ce_fx.nn.FORMS.items() for dims in range(each.dims, 4)]
GEOMETRY = [{}, {"padding": 1, "stride": 2}, {"padding": "same", "dilation": 2}]


def layer(form, dims, **options):
    torch.manual_seed(0)
    rank = 2 if form == "interleaved" else 3
    made = ce_fx.nn.ConvEinsum.of_form(form, 8, 12, (3, 2, 3)[:dims], rank=rank, dtype=torch.float64, **options)
    with torch.no_grad():
        made.bias.normal_()
    return made, torch.randn(SHAPES[dims], dtype=torch.float64, requires_grad=True)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", [left_to_right, checkpointed, rebuilt])
@pytest.mark.parametrize(("form", "dims"), LAYERS)
def test_an_order_is_the_layer(form, dims, order):
    for options in GEOMETRY if dims else GEOMETRY[:1]:
        made, x = layer(form, dims, **options)
        with torch.no_grad():
            same(order(made, x), made.to_dense()(x))


@pytest.mark.parametrize("order", [left_to_right, checkpointed, rebuilt])
def test_gradients_are_those_of_the_layer(order):
    made, x = layer("rtt", 2, padding=1)
    inputs = [x, *made.parameters()]
    true, found = (torch.autograd.grad(run(x).square().sum(), inputs) for run in (made, lambda x: order(made, x)))
    for mine, each in zip(found, true, strict=True):
        same(mine, each)


@pytest.mark.parametrize("order", [left_to_right, rebuilt])
def test_groups(order):
    torch.manual_seed(0)
    made = ce_fx.nn.ConvEinsum.of_form("rtt", 16, 24, (3, 3), rank=2, groups=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        same(order(made, x), made.to_dense()(x))


def test_left_to_right_makes_one_op_a_factor():
    from torch.utils.flop_counter import FlopCounterMode

    made = ce_fx.nn.ConvEinsum("bshw,rs,rh,rw,rt->bthw|hw", (4, 8), (4, 3), (4, 3), (4, 12), padding=1, bias=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        left_to_right(made, torch.randn(2, 8, 10, 10))
    pixels = 2 * 10 * 10
    assert counter.get_total_flops() == 2 * pixels * (8 * 4 + 4 * 3 + 4 * 3 + 4 * 12)


# --- bytes


def test_the_highest_sum_of_live_blocks():
    assert highest([]) == 0
    assert highest([(1, 100), (2, 50), (1, -100), (3, 60)]) == 150
    assert highest([(7, -1000), (1, 10)]) == 10  # it was there before
    assert highest([(1, 10), (1, -10), (1, 30), (2, 5)]) == 35  # an address is used again


def test_peak_bytes_of_a_known_step():
    x = torch.randn(1000)  # 4000 bytes, there before

    def step():
        a = x + 1  # 4000
        b = a.view(10, 100)[2:]  # a view
        c = b.sum(0)  # 400
        del a, b
        return torch.cat([c, c, c]).double()  # 1200, 2400

    step()
    assert peak_bytes(step) == 4000 + 400
    assert peak_bytes(lambda: x.view(-1)) == 0
    assert peak_bytes(lambda: x.clone()) == 4000


def test_peak_bytes_hold_what_autograd_saves():
    x, w = torch.randn(50, 20), torch.randn(20, 20, requires_grad=True)

    def step():
        y = torch.relu(x @ w)  # 4000, and 4000 that are kept
        return y.sum(0).detach()  # 80

    step()
    assert peak_bytes(step) == 8000  # once the relu is there, its input is not needed


def test_standing_bytes_count_a_storage_once():
    x = torch.randn(10, 10)
    model = nn.Linear(10, 3)
    assert standing(model, [x, x[2:], x.view(-1)]) == 4 * (100 + 33)
    assert standing(nn.BatchNorm1d(5), []) == 4 * 20 + 8  # two parameters, two statistics, and a counter of int64


def test_saved_bytes_need_no_memory():
    weight = torch.empty(10**6, 10**6, device="meta", requires_grad=True)
    x = torch.empty(3, 10**6, device="meta")
    assert saved_bytes(lambda: x @ weight) == 3 * 10**6 * 4


@pytest.mark.parametrize(
    ("bytes_", "budget", "largest"), [((200, 300), 1000, 9), ((200, 300), 99, 0), ((100, 100), 9, None)]
)
def test_the_largest_batch(bytes_, budget, largest):
    assert largest_batch(list(zip((1, 2), bytes_, strict=True)), budget) == largest


def test_one_batch_tells_of_no_other():
    assert largest_batch([(2, 300), (1, 200)], 1000) == 9
    assert largest_batch([(4, 100)], 1000) is None and not is_grown([(4, 100)])


def test_a_batch_that_is_mostly_weights_tells_little():
    assert is_grown([(1, 200), (2, 300)]) and not is_grown([(1, 1000), (2, 1100)])


def test_bytes_as_options():
    assert paper.bytes_of("24GiB") == 24 * 2**30
    assert paper.bytes_of("1.5 MB") == 1_500_000
    with pytest.raises(paper.argparse.ArgumentTypeError, match="no size"):
        paper.bytes_of("24 apples")


# --- workloads and ways


def test_the_conformer_takes_padded_batches():
    torch.manual_seed(0)
    model, count = over_time(Conformer(16, 2, 5), "cp", 0.2)
    ((x, frames),) = speech((12,), 16, 3)
    y = model.eval()(x, frames)
    assert count == 1 and y.shape == x.shape and frames[0].all()
    assert model.over_time.num_weights <= 0.2 * 16 * 16 * 5
    x[~frames] = 7.0  # what the padding holds is seen nowhere else
    torch.testing.assert_close(model(x, frames)[frames], y[frames], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_ways_agree(mode):
    workload = workloads()[0]
    size = workload.sizes["quick"]
    torch.manual_seed(0)
    model, count = workload.factorise(ResNet((1, 1), width=8), "rtt", 0.5)
    model = model.double().train(mode == "train")
    batches = [tuple(tensor.double() for tensor in batch) for batch in size.inputs(2)]
    assert count == 5  # four 3x3, and the shortcut
    with torch.set_grad_enabled(mode == "train"):
        made = {name: way(name, model, batches, mode, tune=False) for name in names(mode, False)}
        found = {name: list(results(one, batches, mode)) for name, one in made.items()}
    for name, each in found.items():
        same(each[0], found[REBUILT][0])
        if name != DENSE and mode == "train":
            same(each[1], found[REBUILT][1])


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LayerNorm(6)])
def test_a_step_has_gradients_behind_a_softmax_and_a_norm(last):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), last)
    one = way(REBUILT, model, batches := [(torch.randn(5, 4),)], "train")
    assert list(results(one, batches, "train"))[1].norm() > 1e-2


def test_names_of_a_mode():
    assert LEFT_CHECKPOINTED in names("train", False) and LEFT_CHECKPOINTED not in names("inference", True)
    assert "ce_fx inductor" in names("inference", True) and "ce_fx inductor" not in names("train", False)


def test_what_left_to_right_keeps_is_known_without_running_it():
    made = nn.Sequential(ce_fx.nn.ConvEinsum("bs,rs,rt->bt", (4, 8), (4, 6), bias=False))
    # x, the product with the first factor, and the second factor; x needs no gradient, so the first is not kept.
    assert written_bytes(made, [(torch.randn(10, 8),)]) == 4 * (10 * 8 + 10 * 4 + 4 * 6)


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
    assert next(line for line in lines if line.strip().startswith(LEFT)).split() == [*LEFT.split(), "18", "not", "run"]
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
    one = cells.measure(workloads()[0], "rtt", 0.1, "inference", settings)
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


def test_left_to_right_is_counted_at_batches_that_fit():
    whole = workloads()[0].sizes["quick"].inputs(8)
    model, _ = workloads()[0].factorise(ResNet((1,), width=8), "rcp", 0.1)
    memory = written_bytes(model, whole) // 2
    settings = Settings("quick", rounds=1, batch=8, memory=memory, ways="left to right$|rebuilt", tune=False)
    one = cells.measure(workloads()[0], "rcp", 0.1, "train", settings)
    assert set(one.rounds) == {REBUILT} and [batch for batch, _ in one.peaks[LEFT]] == [2, 4]
    assert "bytes of batches 2 and 4" in one.notes[LEFT]
    assert [batch for batch, _ in one.peaks[REBUILT]] == [4, 8]


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_left_to_right_is_timed_on_two_examples_where_it_takes_too_long(mode):
    settings = Settings("quick", rounds=1, batch=8, patience=0.0, ways="left to right|rebuilt", tune=False)
    one = cells.measure(workloads()[0], "rcp", 0.1, mode, settings)
    slow = [LEFT, LEFT_CHECKPOINTED] if mode == "train" else [LEFT]
    assert list(one.rounds) == [*slow, REBUILT] and list(one.errors) == [REBUILT]
    for name in slow:
        assert [count for count, _ in one.peaks[name]] == ([2, 4] if mode == "train" else [2])
        assert one.notes[name] == "4 times one run of 2 examples" and len(one.rounds[name]) == 1
    line = next(line for line in table([one], 2**30).splitlines() if line.startswith(LEFT))
    assert f"{one.rounds[LEFT][0] * 1e3:.1f}" in line and f"{one.peaks[LEFT][-1][1] / 2**20:.1f}" not in line
    patient = cells.measure(workloads()[0], "rcp", 0.1, mode, replace(settings, patience=60.0))
    assert [count for count, _ in patient.peaks[LEFT]][-1] == 8 and not patient.notes


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
