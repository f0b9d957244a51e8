"""The benchmarks measure what they say: cases build, hand-written orders are their layers, results survive the disk."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from functools import partial

import pytest
import torch

from benchmarks import bars, harness, layouts, regret, results
from benchmarks.cases import Case, cases, chosen, largest_difference
from benchmarks.harness import Timing, compare
from benchmarks.measure import Settings, measure
from benchmarks.results import Row, Run
from benchmarks.table import closing, main, mark, table
from ce_fx.tune.calibrate import time_model
from ce_fx.tune.candidates import candidates

CASES = cases((0.1,))
BY_NAME = {case.name: case for case in CASES}
# 512 channels cost seconds and show nothing that 64 do not.
AFFORDABLE = [case for case in CASES if "512@7" not in case.name and "256@14" not in case.name]
ORDERS = [(case, name) for case in AFFORDABLE for name in case.orders]
STOPWATCH = Settings(rounds=1, budget=0.0, tune=False, small=True)


def row(name="conv/tt/factorized/64@56/.25", mode="forward", gain=3.0, **more):
    gains = {"written": gain, "hand: strips": 0.99, "hand: taps": 1.2} | more.pop("gain_more", {})
    seconds = {"written": 3e-3, "ce_fx": 1e-3, "hand: strips": 0.99e-3, "hand: taps": 1.2e-3, "dense": 4e-3}
    kept = {"spread": 0.02, "peak": (10**6, 2 * 10**6), "first": (1.5, 0.2), "decisions": "1 rewritten"}
    return Row(name, mode, seconds, gains, **kept, **more)


def run(*rows, machine="a machine", **options):
    return Run(machine, {"tune": "auto", **options}, rows, 5.0)


def complete(name, mode):
    more = {"hand: merged": 1.0, "ce_fx+inductor/inductor": 1.0}
    return dataclasses.replace(row(name, mode, gain_more=more), first_eager=1.0)


def test_names_are_unique():
    assert len(BY_NAME) == len(CASES)


@pytest.mark.parametrize("case", AFFORDABLE, ids=lambda case: case.name)
def test_a_case_runs_on_its_small_input(case: Case):
    x = case.input(small=True)
    with torch.no_grad():
        y = case.module().eval()(x)
    assert len(case.small) == len(case.shape)
    assert y.isfinite().all()
    assert y.std() > 0


@pytest.mark.parametrize(("case", "name"), ORDERS, ids=lambda each: getattr(each, "name", each))
def test_a_hand_written_order_is_its_layer(case: Case, name: str):
    assert largest_difference(case, case.orders[name]) < 1e-12


@pytest.mark.parametrize("case", [c for c in AFFORDABLE if c.dense], ids=lambda case: case.name)
def test_the_dense_layer_is_the_layer(case: Case):
    assert largest_difference(case, case.dense) < 1e-12


@pytest.mark.parametrize("case", [c for c in AFFORDABLE if c.fast], ids=lambda case: case.name)
def test_the_string_in_another_order_is_the_layer(case: Case):
    assert largest_difference(case, case.fast) < 1e-12


@pytest.mark.parametrize("kind", ["cp", "tucker", "tt"])
def test_a_model_by_hand_shares_its_parameters(kind: str):
    case = BY_NAME[f"resnet18/{kind}/factorized/.25"]
    model = case.module()
    (twin,) = (bind(model) for bind in case.orders.values())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    assert not any(type(m).__name__ == "ByHand" for m in model.modules())
    assert sum(type(m).__name__ == "ByHand" for m in twin.modules()) == 16


def test_the_regular_expression_picks_rows():
    assert [c.name for c in chosen(CASES, "^conv/tt/factorized/64")] == ["conv/tt/factorized/64@56/.1"]
    assert len(chosen(CASES)) == len(CASES)
    assert all(c.quick for c in chosen(CASES, quick=True))


@pytest.mark.parametrize(("only", "text"), [("no such case", "--list"), ("(", "no regular expression")])
def test_a_bad_filter_says_the_cure(only, text):
    with pytest.raises(ValueError, match=text):
        chosen(CASES, only)


def test_every_bar_has_rows_in_the_whole_table():
    names = [case.name for case in cases()]
    for bar in (*bars.bars_of("auto"), *bars.bars_of("no"), *bars.bars_of("yes")):
        rows = [complete(name, mode) for name in names for mode in ("forward", "train")]
        assert bars.judge(rows, [bar]), bar.text


def test_a_bar_is_judged_by_its_worst_row():
    bar = bars.Bar("all", "^conv/tt", "", 2.0, bars.over_written)
    (verdict,) = bars.judge([row(), row(mode="train", gain=1.5), row("conv/cp/x", gain=0.1)], [bar])
    assert (verdict.met, verdict.value, verdict.worst.mode, verdict.short, verdict.rows) == (False, 1.5, "train", 1, 2)
    assert "NOT met" in str(verdict) and "1.50x" in str(verdict) and "1/2 rows" in str(verdict)
    (verdict,) = bars.judge([row()], [bar])
    assert verdict.met
    assert bars.judge([row("head/x")], [bar]) == []


def test_a_first_call_is_judged_by_the_slowest():
    rows = [dataclasses.replace(complete("resnet18/plain", mode), first=(s, 1.0)) for mode, s in (("a", 1), ("b", 2))]
    verdicts = {v.bar.text: v for v in bars.judge(rows, bars.bars_of("no"))}
    capture = verdicts["capture alone, plain ResNet-18"]
    assert (capture.met, capture.value, capture.short) == (False, 2.0, 1)
    assert "at most 1.2x, worst 2.00x" in str(capture)
    assert verdicts["first call of ResNet-18, tune no"].met
    assert "at most 20 s, worst 2.00 s" in str(verdicts["first call of ResNet-18, tune no"])


def test_the_best_hand_written_order_is_the_fastest():
    assert row().best_hand == "hand: strips"
    assert bars.over_hand(row()) == 0.99
    assert Row("x", "forward", {"written": 1.0}).best_hand is None


@pytest.mark.parametrize(
    ("one", "sign"),
    [
        (row(gain=0.96), "<"),
        (row(gain=0.98), ""),
        (row(gain_more={"ce_fx+inductor/inductor": 0.9}), "<"),
        (dataclasses.replace(row(), difference=0.1), "?"),
    ],
)
def test_a_row_that_lost_is_marked(one, sign):
    assert mark(one) == sign
    assert (f" {sign} " in table([one])) or not sign


def test_a_row_that_lost_comes_with_what_the_report_said():
    lost = dataclasses.replace(row("slow", gain=0.5), reasons={"rewritten: measured wrongly": 2})
    printed = closing(run(row(), lost, Row("failed", "train", error="boom")), None)
    assert "< slow forward: 2 rewritten: measured wrongly" in printed
    assert "64@56/.25 forward: " not in printed


def test_a_failed_row_says_why():
    assert "ValueError: no" in table([row(), Row("conv/x", "forward", error="ValueError: no")])


def test_results_survive_the_disk(tmp_path):
    before = run(row(), row(mode="train", idle=True), Row("x", "forward", error="boom"))
    results.save(before, tmp_path / "folder" / "a.json")
    assert results.load(tmp_path / "folder" / "a.json") == before
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 99}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.json"):
        results.load(path)


def test_the_last_comparable_run_is_found(tmp_path):
    for name, each in {
        "a": dataclasses.replace(run(row()), when=1.0),
        "b": dataclasses.replace(run(row(gain=2.0)), when=2.0),
        "c": dataclasses.replace(run(row(), machine="another"), when=3.0),
        "d": dataclasses.replace(run(row(), tune="no"), when=4.0),
        "e": dataclasses.replace(run(row()), when=5.0),
    }.items():
        results.save(each, tmp_path / f"{name}.json")
    (tmp_path / "f.json").write_text("{")
    now = run(row())
    assert results.last(now, tmp_path, besides=tmp_path / "e.json").when == 2.0
    assert results.last(run(machine="a third"), tmp_path) is None


def test_rows_that_changed_are_named_the_worst_first():
    before = run(row("a", gain=2.0), row("b", gain=2.0), row("c", gain=2.0), row("gone"))
    now = run(row("a", gain=2.1), row("b", gain=4.0), row("c", gain=1.0), row("new"))
    assert [str(c) for c in results.changes(before, now)] == [
        "c forward: 2.00x -> 1.00x",
        "b forward: 2.00x -> 4.00x",
    ]
    assert "2 rows changed" in closing(now, before)


def test_rows_are_replaced_by_name_and_mode():
    merged = run(row("a"), row("b")).with_rows([row("b", gain=9.0), row("b", mode="train")])
    assert [(r.name, r.mode, r.gain["written"]) for r in merged.rows] == [
        ("a", "forward", 3.0),
        ("b", "forward", 9.0),
        ("b", "train", 3.0),
    ]


def test_ratios_are_medians_over_rounds():
    timing = Timing({}, {}, {"a": (2.0, 2.0, 30.0), "b": (1.0, 2.0, 10.0)})
    assert timing.gain("b", over="a") == 2.0
    assert timing.gain("a", over="b") == 0.5
    assert timing.spread("a", over="b") == 0.0  # three rounds have no quartiles


def test_every_candidate_runs_in_every_round():
    calls = []
    timing = compare({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, budget=0.0)
    assert [len(values) for values in timing.rounds.values()] == [3, 3]
    assert calls.count("a") == calls.count("b") == 5  # twice to find the repeats
    assert timing.ratio["a"] == 1.0


@pytest.mark.parametrize(("near", "rounds"), [(None, [5, 2, 2]), ("other", [5, 5, 2])])
def test_what_is_slow_is_timed_in_two_rounds(monkeypatch, near, rounds):
    costs = {"fast": 1.0, "other": 4.0, "slow": 12.0}
    monkeypatch.setattr(harness, "seconds_of", lambda run, repeats=1: run())
    candidates = {name: partial(costs.__getitem__, name) for name in costs}
    timing = compare(candidates, rounds=5, warm=True, far=3.0, near=near)
    assert [len(values) for values in timing.rounds.values()] == rounds


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("name", ["conv/tt/factorized/64@56/.1", "string/cp", "chain/cp/128@28"])
def test_a_measured_row_is_complete(name, mode):
    measured = measure(BY_NAME[name], mode, STOPWATCH)
    assert not measured.error
    assert {"written", "ce_fx"} <= set(measured.seconds)
    assert set(measured.gain) == set(measured.seconds) - {"ce_fx"}
    assert measured.difference < 1e-4
    assert sum(measured.reasons.values()) == sum(
        int(part.split()[0]) for part in measured.decisions.split(", ") if part
    )
    assert measured.first is not None and min(measured.first) > 0
    assert (measured.best_hand is not None) == bool(BY_NAME[name].orders)
    assert ("dense" in measured.seconds) == (mode == "forward" and name.startswith("conv/"))
    assert results.from_json(results.to_json(run(measured))).rows == (measured,)


def test_the_command_writes_adds_and_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.table.FOLDER", tmp_path)
    threads = torch.get_num_threads()
    path = str(tmp_path / "now.json")
    base = ["--rank", ".1", "--tune", "no", "--rounds", "1", "--threads", str(threads), "--json", path]
    main([*base, "--only", "string/tr$", "--mode", "forward"])
    again = main([*base, "--only", "string/tr$", "--mode", "train", "--add"])
    assert [r.key for r in again.rows] == [("string/tr", "forward"), ("string/tr", "train")]
    shown = main([*base, "--show"])
    assert shown.rows == again.rows
    printed = capsys.readouterr().out
    assert "string/tr" in printed and "bars" in printed


@pytest.mark.parametrize(("n", "count"), [(2, 1), (3, 3), (4, 15), (5, 105)])
def test_all_trees_are_all_and_different(n, count):
    def unordered(tree):
        return tree if isinstance(tree, int) else frozenset(map(unordered, tree))

    trees = list(regret._all_trees(list(range(n))))
    assert len(trees) == len({unordered(tree) for tree in trees}) == count


def test_a_regret_is_time_over_the_fastest():
    found = [
        regret.Candidate("time", torch.zeros, predicted=1.0, flops=9),
        regret.Candidate("flops", torch.zeros, predicted=2.0, flops=5),
        regret.Candidate("tree", torch.zeros, predicted=3.0, flops=7),
        regret.Candidate("tree", torch.zeros, predicted=4.0, flops=8),
    ]
    measured = {"written": 12.0, "hand: a": 8.0, "hand: b": 3.0, "0": 6.0, "1": 8.0, "2": 5.0, "3": 4.0}
    measured |= {"ce_fx, predicted": 6.4, "ce_fx, measured": 4.4}
    result = regret.evaluate("layer", "train", found, measured)
    assert result.best == 4.0
    assert result.by_choice == pytest.approx(
        {
            "written": 3.0,
            "flops": 2.0,
            "by hand": 0.75,
            "model": 1.5,
            "top 3": 1.25,
            "top 5": 1.0,
            "top 3 + written": 1.25,
            "ce_fx, predicted": 1.6,
            "ce_fx, measured": 1.1,
        }
    )
    assert "rank 4 of 4" in result.label
    assert "geo-mean" in regret.table([result, result])


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("kind", ["cp", "tucker", "tt"])
def test_candidates_of_a_layer_are_distinct_and_equal_to_it(kind, mode):
    case = BY_NAME[f"conv/{kind}/factorized/64@56/.1"]
    module = case.module()
    problem = regret.problem(case, module, mode, small=True)
    found = regret.candidates(problem, most=6)
    assert "time" in {one.label for one in found}
    assert len({one.run.code for one in found}) == len(found) > 1
    assert all(one.predicted > 0 for one in found)
    regret.check(found, module, problem, case.input(small=True))


def test_a_candidate_that_is_off_is_named():
    case = BY_NAME["conv/tt/factorized/64@56/.1"]
    module = case.module()
    problem = regret.problem(case, module, "forward", small=True)
    wrong = regret.Candidate("wrong", lambda *leaves: module(leaves[0]) * 1.1, 1.0, 1)
    with pytest.raises(AssertionError, match="wrong is off by 1.0e-01"):
        regret.check([wrong], module, problem, case.input(small=True))


def test_regret_is_measured_for_one_product_only():
    case = BY_NAME["resnet18/plain"]
    with pytest.raises(ValueError, match="regions"):
        regret.problem(case, case.module().eval(), "forward", small=True)


def test_the_ways_of_an_order_are_measured(monkeypatch):
    monkeypatch.setattr(layouts, "BUDGET", 1e-3)
    monkeypatch.setattr(layouts, "time_model", lambda *device, measure: time_model(*device))
    case = BY_NAME["conv/tt/factorized/64@56/.1"]
    problem = layouts.problem(case.module(), case.input(small=True), train=False)
    found = layouts.measured(problem, candidates(problem)[0], most=3)
    assert found["count"] == 3 and min(found["usual"], found["chosen"], found["spread"]) >= 1.0


@pytest.mark.parametrize(
    ("module", "options", "shown"),
    [
        ("plan_time", ["--most", "6"], "ring"),
        ("conv_einsum_cp", ["--rounds", "1", "--channels", "8", "--size", "8", "--rank", "2"], "overhead"),
        ("resnet18", ["--rounds", "1", "--factorization", "plain", "--size", "64", "--batch", "1"], "train"),
    ],
)
def test_what_has_a_command_of_its_own_runs(module, options, shown, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module, *options])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    importlib.import_module(f"benchmarks.{module}").main()
    assert shown in capsys.readouterr().out
