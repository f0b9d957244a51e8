"""The table as text: a golden one of a report made by hand, and what its arguments do."""

import pytest

from ce_fx.report import Elsewhere, LayerReport, Report
from ce_fx.report.units import memory, percent, seconds, si, signed_ratio, span
from tests.report.made import LAYERS, REPORT, rewritten, same, training

TABLE = """\
ce_fx audit: Net, forward, eval, no grad, float32, cpu 2 threads, x: 8x3x224x224
1 multiply-add = 2 FLOPs. Times: m = measured here, p = predicted.   objective: time

layer                FLOPs ->          now  gain    time ->        now  gain  temp              decision
conv1                 1.888 G      1.888 G  1.0x     8 ms p     8 ms p  1.0x  1 kB              kept: one convolution
layer1.0.conv1        182.6 M      64.23 M  2.8x     4 ms m     2 ms m  2.0x  2.6 MB -> 200 kB  rewritten: 2.0x faster,
                                                                                                measured
layer1.0.conv2        182.6 M      64.23 M  2.8x     4 ms m     2 ms m  2.0x  2.6 MB -> 200 kB  rewritten (same plan as
                                                                                                layer1.0.conv1)
layer1.10.conv1       182.6 M       91.3 M  2.0x     4 ms m     1 ms m  4.0x  2.6 MB -> 200 kB  rewritten: 2.0x faster,
                                                                                                measured
layer2.norm                 0            0     -     1 ms p     1 ms p  1.0x  1 kB              refused: statistics of
                                                                                                the batch
layer2.mystery              ?            ?     -          ?          ?     -  ?                 refused: no FLOPs are
                                                                                                known of mine::op
total (6 layers)  2.436 G + ?  2.108 G + ?  1.2x  21 ms m+p  14 ms m+p  1.5x  2.6 MB -> 200 kB  3 rewritten, 1 kept, 2
                                                                                                refused
coverage: 22% of FLOPs and 48% of time that was counted are in the 3 rows that can change; best possible speed-up from
  them: 1.9x
?: not counted, and in no total: layer2.mystery
not counted: relu 17, add 8 (elementwise, pools and copies; 40% of bytes moved, 4 ms p)
refused: layer2.norm - statistics of the batch
refused: layer2.mystery - no FLOPs are known of mine::op
note: graph break at net.py:3"""

PLANS = """\
layer1.0.conv1    bshw,tr,rshw->bthw|hw
  the same for layer1.0.conv2
  b=8 s=64 h=56/3 w=56/3 t=64 r=2
    1  bshw,rshw->brhw|hw   57.8 M  slide
    2  brhw,tr->bthw       6.423 M  pixels
  as written: conv2d 3x3 64->2, conv2d 1x1 2->64
  one dense operator: 1.85 G, 28.8x more"""


def rows_of(text):
    """The names of the rows, up to the total."""
    lines = text.split("\n\n")[1].splitlines()[1:]
    names = [line.split("  ")[0] for line in lines if not line.startswith(" ")]
    return names[: next(n for n, name in enumerate(names) if name.startswith("total"))]


def test_the_table_is_as_it_was():
    assert REPORT.to_text(width=120) == TABLE
    assert max(map(len, TABLE.splitlines())) <= 120


def test_printing_takes_the_width_of_the_terminal_or_120_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert str(REPORT) == REPORT.to_text()
    monkeypatch.setenv("COLUMNS", "84")
    assert REPORT.to_text() == REPORT.to_text(width=84)


@pytest.mark.parametrize(
    ("width", "has"), [(150, ("kind", "temp")), (120, ("temp",)), (90, ()), (60, ())], ids=lambda value: str(value)
)
def test_a_narrow_table_leaves_out_the_kind_and_then_the_memory(width, has):
    headings = REPORT.to_text(width=width).split("\n\n")[1].splitlines()[0].split()
    assert tuple(name for name in ("kind", "temp") if name in headings) == has
    assert "layer1.10.conv1" in REPORT.to_text(width=width), "names stay whole"


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("graph", [layer.name for layer in LAYERS]),
        ("gain", [LAYERS[n].name for n in (3, 1, 2, 0, 4, 5)]),
        ("time", [LAYERS[n].name for n in (0, 1, 2, 3, 4, 5)]),
        ("name", [LAYERS[n].name for n in (0, 1, 2, 3, 5, 4)]),
    ],
)
def test_rows_are_sorted(sort, names):
    assert rows_of(REPORT.to_text(sort=sort, width=150)) == names


def test_the_gain_is_of_the_objective():
    report = Report((rewritten("a", time_after=1e-3), rewritten("b", flops_after=1)), objective="flops")
    assert rows_of(report.to_text(sort="gain")) == ["b", "a"]


def test_names_sort_as_people_count():
    report = Report(tuple(same(f"layer{n}", "kept", "", 1, 1.0, "") for n in (10, 2, 1)))
    assert rows_of(report.to_text(sort="name")) == ["layer1", "layer2", "layer10"]


def test_depth_folds_what_is_below_into_one_row():
    text = REPORT.to_text(depth=1, width=150)
    assert rows_of(text) == ["conv1", "layer1", "layer2"]
    assert "3 layers" in text and "547.8 M" in text and "219.8 M" in text
    assert rows_of(REPORT.to_text(depth=2, width=150))[1:3] == ["layer1.0", "layer1.10.conv1"]


def test_a_row_that_stands_for_an_uncounted_layer_says_so():
    (row,) = [line for line in REPORT.to_text(depth=1).splitlines() if line.startswith("layer2 ")]
    assert row.split()[1:3] == ["?", "?"]


def test_small_gains_become_one_row():
    text = REPORT.to_text(min_gain=3, width=150)
    assert rows_of(text) == ["layer1.10.conv1", "(5 layers below 3x)"]
    assert rows_of(REPORT.to_text(min_gain=0.5)) == [layer.name for layer in LAYERS]


def test_refused_casts_share_a_row_and_keep_their_reasons():
    casts = [same(name, "refused", f"reason of {name}", 0, 1e-6, "") for name in "ab"]
    text = Report((LAYERS[0], *casts)).to_text()
    assert rows_of(text) == ["conv1", "(2 without multiply-adds)"]
    assert "refused: a - reason of a" in text and "refused: b - reason of b" in text


def test_plans_are_printed_once_each():
    text = REPORT.to_text(plans=True, width=120)
    assert text.startswith(TABLE) and PLANS in text
    assert text.count("the same for") == 1 and "layer1.10.conv1    bshw" in text
    assert "no plan: nothing was rewritten" in Report((LAYERS[0],)).to_text(plans=True)


def test_training_adds_the_forward_and_the_backward():
    report = Report(tuple(map(training, LAYERS[:3])))
    assert report.training
    rows = {line.split("  ")[0]: line.split() for line in report.to_text(width=150).splitlines()}
    forward, backward, whole = (rows[name] for name in ("forward", "backward", "total (3 layers)"))
    assert (forward[1:3], backward[1:3], whole[3:5]) == (["2.253", "G"], ["4.506", "G"], ["6.76", "G"])
    parts = [getattr(layer, part)() for layer in report.layers for part in ("forward", "backward")]
    assert sum(part.flops_before for part in parts) == report.flops_before
    assert sum(part.time_after for part in parts) == pytest.approx(report.time_after)
    assert "their sum is split as predicted" in report.to_text()


def test_totals_are_of_what_is_known():
    assert (REPORT.flops_before, REPORT.flops_after) == (2_435_800_000, 2_107_750_560)
    assert REPORT.time_before == pytest.approx(21e-3) and [layer.name for layer in REPORT.uncounted] == [
        "layer2.mystery"
    ]
    nothing = Report((LayerReport("(graph)", "", "refused", "ce_fx failed", None, None, None, None),))
    assert (nothing.flops_before, nothing.time_before, nothing.best_speedup) == (0, None, None)
    assert "(graph)" in nothing.to_text() and "?" in nothing.to_text()


def test_the_best_speedup_is_amdahls():
    """21 ms in rows and 4 elsewhere, of which 12 can go."""
    assert REPORT.best_speedup == pytest.approx(25 / 13)
    alone = Report((rewritten("a"),))
    assert alone.best_speedup == float("inf") and "nothing else takes time" in alone.to_text()
    nearly = Report((rewritten("a"),), elsewhere=(Elsewhere("relu", 1, 1, 3e-7),)).to_text()
    assert "the rest of the model takes under 1% of the time" in " ".join(nearly.split()) and "best" not in nearly
    unknown = Report((rewritten("a"),), elsewhere=(Elsewhere("relu", 1, 1, None),))
    assert unknown.best_speedup is None and "in the one row that can change" in unknown.to_text()


def test_an_empty_report_says_so():
    text = Report((), "Net", elsewhere=(Elsewhere("relu", 2, 10, 1e-6),), bytes=10).to_text()
    assert "no multilinear layer was found" in text and "not counted: relu 2" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"sort": "size"}, "sort must be one of"), ({"depth": 0}, "at least 1"), ({"width": 0}, "at least 1")],
)
def test_what_makes_no_sense_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        REPORT.to_text(**arguments)


def test_numbers_for_people():
    assert [si(n) for n in (1_888_000_000, 38_600_000, 640, None)] == ["1.888 G", "38.6 M", "640 ", "?"]
    assert [memory(n) for n in (320, 2_600_000, None)] == ["320 B", "2.6 MB", "?"]
    assert [seconds(t, "p") for t in (4.57e-3, 1.25, None)] == ["4.57 ms p", "1.25 s p", "?"]
    assert span(1000, 1000) == "1 kB" and span(2000, 1000) == "2 kB -> 1 kB"
    assert percent(1, 4) == "25%" and percent(1, None) == "?"
    assert signed_ratio(2, 1) == "2.0x fewer" and signed_ratio(1, 2) == "2.0x more"
