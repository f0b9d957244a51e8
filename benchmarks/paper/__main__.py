"""The paper's workloads, every way side by side: `python -m benchmarks.paper --help`.

Networks of arXiv 2401.03384 with factorised layers: ResNet-34 on 32 px, a Conformer block on batches of varying length,
and a two-stream ResNet-101. Each is evaluated from left to right with one torch op a factor, the same with every layer
checkpointed, with its kernels rebuilt by torch.einsum, as the dense network, and by ce_fx. All take turns in one
process. Bytes are the most of a step, with weights and inputs; in training the largest batch in a budget follows from
those at two batch sizes. A training step is the forward and the gradients of all weights; an optimiser's state is not
in it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import torch

from benchmarks.harness import machine
from benchmarks.paper.cells import Cell, Key, Settings
from benchmarks.paper.measure import measure
from benchmarks.paper.text import claims, name_of, table
from benchmarks.paper.workloads import RATES, Workload, workloads
from benchmarks.table import own_cache
from ce_fx.tune.calibrate import time_model

MODES = ("train", "inference")
TUNE: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1, "": 1}


def bytes_of(text: str) -> int:
    """`24GiB` as a number of bytes."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMG]?i?B?)\s*", text)
    if not found or found[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 24GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2]])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="workloads whose name it finds")
    parser.add_argument("--forms", nargs="+", metavar="FORM", help="of the workload's, all by default")
    parser.add_argument("--rates", nargs="+", type=float, metavar="PERCENT", help=f"of {[100 * r for r in RATES]}")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--ways", default="", metavar="REGEX", help="ways whose name it finds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tune", choices=list(TUNE), help="as in ce_fx.optimize: auto, but off if quick")
    parser.add_argument("--batch", type=int, help="instead of the workload's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="the sizes for a GPU")
    parser.add_argument("--quick", action="store_true", help="a tiny network, one form and one rate: does it run?")
    parser.add_argument("--inductor", action="store_true", help="what Inductor compiles as well; that takes long")
    parser.add_argument("--budget", type=bytes_of, default="24GiB", help="of the table of largest batches")
    parser.add_argument("--memory", type=bytes_of, default="12GiB", help="of a whole batch from left to right")
    parser.add_argument("--json", type=Path, metavar="PATH", help="keeps the cells; those that are there are not rerun")
    return parser.parse_args(arguments)


def settings_of(args: argparse.Namespace) -> Settings:
    """How to measure, from the command line."""
    size = "quick" if args.quick else "full" if args.full else "cpu"
    tune = TUNE[args.tune or ("off" if args.quick else "auto")]
    return Settings(size, args.device, args.rounds, args.inductor, args.batch, args.memory, args.ways, tune)


def cases(args: argparse.Namespace) -> Iterator[tuple[Workload, str, float, str]]:
    """Workloads, forms, rates and modes that were asked for."""
    rates = [percent / 100 for percent in args.rates] if args.rates else None
    found = [workload for workload in workloads() if re.search(args.only, workload.name)]
    known = {form for workload in found for form in workload.forms}
    if not found or not known.issuperset(args.forms or ()):
        raise SystemExit(f"--only {args.only!r} and --forms {args.forms} leave nothing; there are {sorted(known)}")
    for workload in found[:1] if args.quick else found:
        forms = [form for form in workload.forms if not args.forms or form in args.forms]
        chosen = rates or list(workload.rates)
        if args.quick:
            forms, chosen = forms[:1], rates or [0.1]
        yield from product([workload], forms, chosen, args.mode)


def attempt(workload: Workload, form: str, rate: float, mode: str, settings: Settings) -> Cell:
    """A cell, whatever happens, with progress on stderr."""
    start = time.perf_counter()
    try:
        cell = measure(workload, form, rate, mode, settings)
    except Exception as error:  # the other cells are still wanted; the table shows what happened
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        cell = Cell(workload.name, form, rate, mode, settings.where(workload), settings.by(), error=reason)
    print(f"{name_of(cell)}: {cell.error or 'done'} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    return cell


def load(path: Path | None) -> dict[Key, Cell]:
    """The cells of a file, without those that failed."""
    if path is None or not path.exists():
        return {}
    cells = [_cell(content) for content in json.loads(path.read_text())]
    return {cell.key: cell for cell in cells if not cell.error}


def _cell(content: Mapping[str, object]) -> Cell:
    """JSON has lists for tuples."""
    cell = Cell(**content)  # type: ignore[arg-type]
    return replace(cell, peaks={name: tuple(map(tuple, points)) for name, points in cell.peaks.items()})


def main(arguments: Sequence[str] | None = None) -> list[Cell]:
    """Measure and print; returns the cells that were asked for."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    settings, found, chosen = settings_of(args), load(args.json), []
    with own_cache():
        time_model(args.device, measure=settings.tune is not False)
        for workload, form, rate, mode in cases(args):
            key = workload.name, form, rate, mode, settings.where(workload), settings.by()
            if key not in found or not found[key].holds(settings.chosen(mode)):
                found[key] = attempt(workload, form, rate, mode, settings)
                if args.json:
                    args.json.write_text(json.dumps([asdict(each) for each in found.values()], indent=1))
            chosen.append(found[key])
    print(f"{machine(args.device)}\n\n{table(chosen, args.budget)}\n\n{claims(chosen, args.budget)}")
    return chosen


if __name__ == "__main__":
    main()
