"""The paper's workloads: evaluations by hand are the layer's, bytes are exact, and the tables say what was measured."""

import json

import pytest
import torch
from torch import nn

import ce_fx
from benchmarks.doors_models import Conformer
from benchmarks.paper import __main__ as paper
from benchmarks.paper import decomposed
from benchmarks.paper.cells import Cell, Settings, written_bytes
from benchmarks.paper.nets import ResNet
from benchmarks.paper.orders import checkpointed, left_to_right, rebuilt
from benchmarks.paper.peak import highest, is_grown, largest_batch, peak_bytes, saved_bytes, standing
from benchmarks.paper.text import claims, table
from benchmarks.paper.ways import DENSE, LEFT, LEFT_CHECKPOINTED, REBUILT, names, results, way
from benchmarks.paper.workloads import over_time, speech, workloads

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
    assert largest_batch((1, 2), bytes_, budget) == largest


def test_a_batch_that_is_mostly_weights_tells_little():
    assert is_grown((1, 2), (200, 300)) and not is_grown((1, 2), (1000, 1100))


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
    peaks = {LEFT: (2000, 3000), REBUILT: (300, 400), DENSE: (300, 400), "ce_fx time": (300, 500)}
    notes = {LEFT_CHECKPOINTED: "not run"}
    return Cell("Net", "rtt", 0.05, mode, "4 x 3, cpu", 2, (2, 4), rounds, peaks, {}, notes, **options)


def test_the_table():
    lines = table([cell()], 10_000).splitlines()
    assert lines[1].startswith("Net rtt 5 % train: 2 layers, 4 x 3, cpu")
    ours = next(line for line in lines if line.strip().startswith("ce_fx time"))
    assert ours.split() == ["ce_fx", "time", "1250.0", "2.40x", "0.80x", "<", "0.40x", "0.0", "99"]
    assert any(line.strip().startswith(LEFT_CHECKPOINTED) and line.endswith("not run") for line in lines)


def test_the_paper_beside_what_was_measured():
    (train, inference) = claims([cell(), cell("inference")], 10_000).splitlines()[1:]
    for text in ("1.6-2.8x", "2.40x", "0.80x <", "2-10x", "5.5x (ce_fx time)", "dense is faster, 2.50x"):
        assert text in train
    assert "1.1-1.3x" in inference


def test_a_cell_that_failed_says_why():
    failed = Cell("Net", "rtt", 0.05, "train", "here", error="RuntimeError: no memory")
    assert "RuntimeError: no memory" in table([failed], 1)
    assert len(claims([failed], 1).splitlines()) == 1


def test_what_was_measured_is_not_run_again(tmp_path, monkeypatch, capsys):
    runs = []

    def once(workload, form, rate, mode, settings):
        runs.append((workload.name, form, rate, mode))
        notes = dict.fromkeys(settings.chosen(mode), "not run")
        error = "x" * (mode == "train")
        return Cell(workload.name, form, rate, mode, settings.where(workload), notes=notes, error=error)

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


def test_quick(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    only = ["--only", "ResNet-34", "--mode", "train", "--ways", "left to right$|rebuilt|dense|time"]
    (measured,) = paper.main(["--quick", "--rounds", "1", "--tune", "off", *only])
    assert not measured.error and measured.layers == 2
    assert set(measured.rounds) == {LEFT, REBUILT, DENSE, "ce_fx time"}
    assert max(measured.errors.values()) < 1e-3
    assert all(0 < half < whole for half, whole in measured.peaks.values())
    assert "ResNet-34 rcp 10 % train" in capsys.readouterr().out


def test_a_batch_has_a_half():
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
