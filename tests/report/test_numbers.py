"""Sums, parts and exact numbers of a report, on rows whose numbers are not round."""

import csv
import io
import json

import pytest

from ce_fx.report import Elsewhere, Report
from ce_fx.report.units import seconds
from tests.report.made import rewritten, same

PARTS = {"forward_flops_before": 7, "forward_flops_after": 5, "forward_time_before": 1 / 7, "forward_time_after": 1 / 9}
ROWS = (
    rewritten("a", time_before=1 / 3e3, time_after=1 / 7e3, foldable_flops=1000, foldable_time=1e-4, **PARTS),
    rewritten("b", time_before=1 / 9e3, measured=False, foldable_flops=2000, foldable_time=2e-4),
    same("c", "kept", "one convolution", 10, 1 / 11e3, "Conv2d"),
)
REPORT = Report(ROWS, elsewhere=(Elsewhere("relu", 1, 8, 1 / 13e3),), bytes=16)


def test_csv_holds_floats_to_the_last_digit():
    lines = list(csv.DictReader(io.StringIO(REPORT.to_csv())))
    assert [float(line["time_before"]) for line in lines[:3]] == [row.time_before for row in ROWS]


def test_json_holds_what_the_report_says():
    told = json.loads(REPORT.to_json())
    assert told["time_elsewhere"] == 1 / 13e3
    assert told["time_after"] == sum(row.time_after for row in ROWS)
    assert told["time_before"] == sum(row.time_before for row in ROWS)
    assert told["mismatches"] == 0 and told["flops_after"] == 2 * 64_225_280 + 10


def test_the_best_speed_up_counts_predicted_rows_as_well_as_measured():
    whole = 1 / 3e3 + 1 / 9e3 + 1 / 11e3 + 1 / 13e3
    assert REPORT.best_speedup == pytest.approx(whole / (1 / 11e3 + 1 / 13e3))


def test_what_folding_would_save_is_summed_over_rows():
    assert "fold: 2 rows have steps on weights only" in REPORT.to_text()
    assert "would save 3 k FLOPs and 0.3 ms p a call" in " ".join(REPORT.to_text().split())


def test_forward_and_backward_add_up():
    row = ROWS[0]
    for name in ("flops_before", "flops_after", "time_before", "time_after"):
        assert getattr(row.forward(), name) == PARTS[f"forward_{name}"]
        parts = getattr(row.forward(), name) + getattr(row.backward(), name)
        assert parts == pytest.approx(getattr(row, name))


def test_a_row_that_is_taken_back_runs_as_written():
    back = ROWS[0].taken_back("it failed")
    assert (back.decision, back.reason, back.plan, back.products) == ("kept", "it failed", (), ())
    for name in ("flops", "peak", "time", "forward_flops", "forward_time"):
        assert getattr(back, f"{name}_after") == getattr(ROWS[0], f"{name}_before")
    assert back.foldable_flops is None and back.foldable_time is None
    assert ROWS[2].taken_back("it failed") is ROWS[2]


def test_coverage_says_that_unknown_rows_are_not_in_it():
    unknown = same("d", "refused", "no FLOPs are known of mine::op", None, None, "Mystery", peak=None)
    text = " ".join(Report((ROWS[0], unknown)).to_text().split())
    assert "100% of time that was counted are in the one row that can change" in text
    assert "nothing else that was counted takes time" in text


def test_a_time_is_never_a_thousand_milliseconds():
    assert [seconds(time) for time in (0.9994, 0.9999, 1.0, 59.97)] == ["999 ms", "1 s", "1 s", "60 s"]
