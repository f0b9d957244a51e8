"""Markdown, CSV and JSON: all columns, exact numbers, nothing that would be taken for markup."""

import csv
import io
import json

import pytest

from ce_fx.report import Report
from ce_fx.report.report import SCHEMA
from tests.report.made import LAYERS, REPORT, rewritten, training


def records(report):
    return list(csv.DictReader(io.StringIO(report.to_csv())))


def test_csv_holds_exact_numbers_that_add_up():
    rows = records(REPORT)
    assert [row["name"] for row in rows] == [layer.name for layer in LAYERS]
    assert {row["schema"] for row in rows} == {str(SCHEMA)}
    assert sum(int(row["flops_before"]) for row in rows if row["flops_before"]) == REPORT.flops_before
    assert sum(float(row["time_after"]) for row in rows if row["time_after"]) == REPORT.time_after
    assert rows[-1]["flops_before"] == "" and rows[-1]["reason"] == "no FLOPs are known of mine::op"
    assert rows[1]["plan"] == "bshw,rshw->brhw|hw; brhw,tr->bthw"


def test_csv_keeps_what_is_awkward():
    name, reason = 'odd, "name"\nof\ttwo lines', "because; so"
    (row,) = records(Report((rewritten(name, reason=reason),)))
    assert (row["name"], row["reason"]) == (name, reason)


def test_json_is_the_dict_with_exact_integers():
    data = json.loads(REPORT.to_json())
    assert data == REPORT.to_dict()
    assert data["schema"] == SCHEMA and data["about"]["inputs"] == {"x": "8x3x224x224"}
    rows = data["layers"]
    assert sum(row["flops_before"] or 0 for row in rows) == data["flops_before"] == 2_435_800_000
    assert rows[-1]["flops_before"] is None and data["uncounted"] == ["layer2.mystery"]
    steps = rows[1]["products"][0]["steps"]
    assert sum(step["flops"] for step in steps) == 57_802_752 + 6_422_528


def test_json_of_training_holds_both_parts():
    data = Report(tuple(map(training, LAYERS[:2]))).to_dict()
    assert data["training"] is True
    assert [3 * row["forward_flops_before"] for row in data["layers"]] == [
        row["flops_before"] for row in data["layers"]
    ]


def test_markdown_is_one_table_with_all_columns():
    lines = REPORT.to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(LAYERS) + 1, "headings, a rule, layers and the total"
    assert len({line.count("|") for line in table}) == 1 and table[0].count("|") == 11
    assert "one convolution; it begins here" in table[2], "reasons are in full"
    assert "**2.436 G + ?**" in table[-1]
    assert any(line.startswith("- coverage: 22%") for line in lines)


def test_markdown_escapes_what_is_markup():
    text = Report((rewritten("a|b*c_d<br>&", reason="x | y"),), "Net_A").to_markdown()
    (row,) = [line for line in text.splitlines() if line.startswith("| a")]
    assert r"a\|b\*c\_d\<br\>&amp;" in row and r"x \| y" in row and r"Net\_A" in text
    assert row.replace(r"\|", "").count("|") == 11


def test_a_plot_has_a_bar_for_each_layer():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    figure = REPORT.plot()
    top, bottom = figure.axes
    assert len(top.patches) == len(bottom.patches) == 2 * len(LAYERS)
    assert [bar.get_height() for bar in top.patches[:2]] == pytest.approx([1.888, 0.1826])
    assert [text.get_text() for text in bottom.get_xticklabels()] == [layer.name for layer in LAYERS]
    assert bottom.get_ylabel() == "ms (measured and predicted)"


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install ce_fx\[plot\]"):
        REPORT.plot()
