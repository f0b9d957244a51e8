"""The benchmark table: `python -m benchmarks.table --help`.

Layers and models, forward and training: as written, by hand, dense, ce_fx, and on request Inductor. All candidates of a
row take turns in one process; ratios are medians of the ratios of rounds. Rows are saved as they are measured.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

import ce_fx
from benchmarks.bars import SLOWEST, bars_of, judge
from benchmarks.cases import RANKS, Case, cases, chosen
from benchmarks.harness import machine
from benchmarks.measure import MODES, Settings, attempt, measure
from benchmarks.results import FOLDER, Row, Run, changes, last, load, save
from ce_fx.tune.calibrate import time_model

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TUNE = {"auto": "auto", "yes": True, "no": False}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="REGEX", help="the cases whose name it finds")
    parser.add_argument("--rank", type=float, nargs="+", default=list(RANKS), help="of the convolutions")
    parser.add_argument("--mode", choices=[*MODES, "both"], default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a quarter of the table, fewer rounds: under 3 minutes")
    parser.add_argument("--inductor", action="store_true", help="two more columns; compiling takes long")
    parser.add_argument("--rounds", type=int, help="9; with --quick 5")
    parser.add_argument("--tune", choices=list(TUNE), default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="of the inputs, instead of each case's own")
    parser.add_argument("--autocast", choices=list(HALF), help="run under autocast")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="where to write; else a new file in benchmarks/results"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the rows that --json has and that are not measured now"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing, print what --json has")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    return parser.parse_args(arguments)


def table(rows: Sequence[Row]) -> str:
    """The rows: times in ms, ratios of ce_fx; `<` marks what is slower than as written.

    First calls are those of a new module, of a second one, and in brackets of `torch.compile(backend="eager")`.
    """
    with_inductor = any("inductor" in row.seconds for row in rows)
    heads = ["case", "mode", "written ms", "by hand", "dense", "ce_fx", "x written", "", "x hand", "hand", "peak MB"]
    heads += ["first s", "decisions"]
    if with_inductor:
        heads += ["Inductor ms", "ce_fx+I", "x Inductor"]
    return tabulate(
        [_cells(row, with_inductor) for row in rows],
        headers=heads,
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left", "left", *["right"] * 5, "left", "right", "left", "right", "right", "left"]
        + ["right"] * 3 * with_inductor,
    )


def mark(row: Row) -> str:
    """`<` for a row that lost, or `?` if its result is not the layer's."""
    if row.difference > row.rounding:
        return "?"
    return "<" if min(row.gain.get("written", 1.0), row.gain.get("ce_fx+inductor/inductor", 1.0)) < SLOWEST else ""


def _cells(row: Row, with_inductor: bool) -> list[str]:
    if row.error:
        return [row.name, row.mode, row.error]
    hand = row.best_hand
    cells = [
        row.name,
        row.mode,
        _ms(row, "written"),
        _ms(row, hand),
        _ms(row, "dense"),
        _ms(row, "ce_fx"),
        f"{row.gain['written']:.2f} ±{row.spread:.0%}",
        mark(row),
        f"{row.gain[hand]:.2f}" if hand else "-",
        hand.removeprefix("hand: ") if hand else "-",
        "{:.1f} -> {:.1f}".format(*(each / 1e6 for each in row.peak)) if row.peak else "-",
        "{:.2f}, {:.2f}".format(*row.first) + (f" ({row.first_eager:.2f})" if row.first_eager else "")
        if row.first
        else "-",
        row.decisions or "-",
    ]
    if not with_inductor:
        return cells
    over = row.gain.get("ce_fx+inductor/inductor")
    return [*cells, _ms(row, "inductor"), _ms(row, "ce_fx+inductor"), f"{over:.2f}" if over else "-"]


def _ms(row: Row, name: str | None) -> str:
    seconds = row.seconds.get(name or "")
    return "-" if seconds is None else f"{seconds * 1e3:.3g}"


def closing(run: Run, before: Run | None) -> str:
    """The rows that lost and what the report said of them, the bars, and what changed since the last run."""
    lost = [row for row in run.rows if not row.error and mark(row)]
    lines = ["", *(f"{mark(row)} {row.name} {row.mode}: {_reasons(row)}" for row in lost)]
    lines.append("bars (of the rows above)")
    lines += [f"  {verdict}" for verdict in judge(run.rows, bars_of(run.options["tune"]))]
    if before is None:
        return "\n".join([*lines, "no earlier run of this machine with these options"])
    moved = changes(before, run)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(before.when))
    lines.append(f"against the run of {when}: {len(moved)} rows changed by more than 10%")
    return "\n".join([*lines, *(f"  {change}" for change in moved)])


def _reasons(row: Row) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in row.reasons.items()) or "nothing was found to rewrite"


@contextmanager
def own_cache() -> Iterator[None]:
    """What was tuned before is not known here, so that a first call is one; what the user has cached is left alone."""
    before = os.environ.get("CE_FX_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CE_FX_CACHE_DIR"] = before or folder
        try:
            yield
        finally:
            os.environ.pop("CE_FX_CACHE_DIR")
            if before is not None:
                os.environ["CE_FX_CACHE_DIR"] = before


def _warm_up(settings: Settings) -> str:
    """What only a process's first call does (imports, the calibration) belongs to no row.

    Returns:
        Whose constants the time model has.
    """
    start = time.perf_counter()
    model = time_model(settings.device, measure=settings.tune is not False)
    spent = time.perf_counter() - start
    layer = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 3)).to(settings.device)
    with torch.no_grad():
        ce_fx.optimize(layer, (torch.randn(1, 4, 8, 8, device=settings.device),), tune=settings.tune)
    return f"time model calibrated in {spent:.1f} s" if model.calibrated else "time model as shipped"


def measured(found: Sequence[Case], modes: Sequence[str], settings: Settings) -> Iterator[Row]:
    """Row by row; a case that fails is a row that says so."""
    for number, case in enumerate(found, 1):
        for mode in modes:
            yield attempt(
                f"[{number}/{len(found)}] {case.name} {mode}",
                partial(measure, case, mode, settings),
                partial(_failed, case, mode),
                mark,
            )


def _failed(case: Case, mode: str, error: str) -> Row:
    return Row(case.name, mode, idle=case.idle, error=error)


def main(arguments: Sequence[str] | None = None) -> Run:
    """Measure, print, save, compare.

    Returns:
        what was measured, with the rows that were kept.
    """
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    found = chosen(cases(args.rank), args.only, args.quick)
    chosen_options = {"batch": args.batch, "autocast": args.autocast}
    options = {"tune": args.tune, "device": args.device, **{k: v for k, v in chosen_options.items() if v is not None}}
    path = args.json or FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    run = Run(machine(args.device), options)
    if (args.add or args.show) and path.exists():
        kept = load(path)
        run = run.with_rows(kept.rows) if run.comparable(kept) else run
    if args.list:
        print("\n".join(case.name for case in found))
        return run
    settings = Settings(
        args.rounds or (5 if args.quick else 9),
        budget=0.02 if args.quick else 0.03,
        tune=TUNE[args.tune],
        inductor=args.inductor,
        device=args.device,
        batch=args.batch,
        autocast=HALF.get(args.autocast),
    )
    warnings.filterwarnings("ignore", message=".*TF32.*")
    how = "as saved"
    if not args.show:
        with own_cache():
            how = _warm_up(settings)
            for row in measured(found, MODES if args.mode == "both" else (args.mode,), settings):
                run = run.with_rows([row])
                save(run, path)
    print(f"{run.machine}, tune {args.tune}, {args.device}, {how}\n\n{table(run.rows)}")
    print(closing(run, last(run, besides=path)))
    return run


if __name__ == "__main__":
    main()
