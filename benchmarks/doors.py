"""Models by every door, in every mode: `python -m benchmarks.doors --help`.

Doors are `ce_fx.optimize`, and the backend "ce_fx" with inner "eager" and "inductor"; modes are eval, train, dynamic
sizes and bfloat16 autocast. A cell says whether results are the model's own, in how many graphs it was captured, how
many times faster it is, and the seconds of the first call: compared with the model as written, or behind the backend
with torch.compile and the same inner backend alone, which took turns with it. Every cell starts with empty caches, but
for the calibration.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import ce_fx
from benchmarks.doors_models import Doored, models
from benchmarks.harness import compare, machine
from benchmarks.table import own_cache
from ce_fx.tune.calibrate import time_model
from ce_fx.tune.store import folder

MODES = ("eval", "train", "dynamic", "bf16")
DOORS = ("optimize", "eager", "inductor")
ROUNDED = 1e-5
"""Largest relative error in float32, by norm, against the model as written in float64. In training one input of twelve
is enough: where a rounding puts one activation on the other side of a ReLU, all gradients change by up to a hundredth,
and so they do from float64 to float32 as written. A mistake would show in all of them; where it is what they are
compared with that is `FLIPPED` the input says nothing."""
FLIPPED = 1e-4
WORSE = 1.5
"""How many times the error of what it is compared with is allowed, where that is more; in bfloat16 always, by norm over
twelve inputs: the few outputs of one say little of how much is rounded."""

Run = Callable[..., Any]
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Cell:
    """One model by one door in one mode.

    Attributes:
        model, door, mode: which.
        error: of the results (and gradients in training) by norm, relative; of what is written where there is a bar.
        passed: it is within the bar.
        graphs: how many were captured, over all sizes.
        gain: times faster than as written, or behind the backend than the inner backend alone.
        first: seconds of the first call, and of the inner backend's own.
        reason: what went wrong, with us or, where it passed, with the inner backend alone.
    """

    model: str
    door: str
    mode: str
    error: float = 0.0
    passed: bool = False
    graphs: int = 0
    gain: float | None = None
    first: tuple[float, float | None] = (0.0, None)
    reason: str = ""


def opened(door: str, model: nn.Module, mode: str) -> Run:
    """A model behind a door."""
    dynamic = True if mode == "dynamic" else None
    if door == "optimize":
        return ce_fx.optimize(model, dynamic=dynamic)
    return torch.compile(model, backend="ce_fx", dynamic=dynamic, options={"inner": door})


def results(run: Run, model: nn.Module, inputs: Sequence[Tensor], mode: str) -> list[Tensor]:
    """What a call gives, and in training the gradients of its weights."""
    with torch.set_grad_enabled(mode == "train"), torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
        y = run(*inputs)
    if mode != "train":
        return [y]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, weights, torch.cos(torch.arange(y.numel()).view(y.shape)).to(y))]


def error_of(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The larger of two relative errors by norm: of the output, and of all gradients as one vector."""
    worst = 0.0
    for mine, true in ((found[:1], exact[:1]), (found[1:], exact[1:])):
        off = sum(float((a.double() - b).square().sum()) for a, b in zip(mine, true, strict=True))
        size = sum(float(b.square().sum()) for b in true)
        worst = max(worst, (off / size) ** 0.5 if size else off**0.5)
    return worst


def measure(one: Doored, door: str, mode: str, rounds: int) -> Cell:
    """One cell; what a door raises is its reason."""
    torch._dynamo.reset()
    counters.clear()
    written, model = (one.build().train(mode == "train") for _ in range(2))
    exact = copy.deepcopy(written).double()
    given = [one.inputs(n) for n in range(len(one.shapes))] if mode == "dynamic" else [one.inputs()]
    with fresh_cache(), calibrated_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = opened(door, model, mode)
        try:
            first = first_call(run, model, given[0], mode)
            for inputs in given:
                results(run, model, inputs, mode)
        except Exception as error:
            reasons = [reason_of(error), rival_of(door, written, given[0], mode)[2]]
            return Cell(one.name, door, mode, reason="; ".join(filter(None, reasons)))
        graphs = counters["stats"]["unique_graphs"]
        rival, alone, failed = rival_of(door, written, given[0], mode)
        if mode in ("train", "bf16"):
            given += [one.inputs(seed=n) for n in range(1, 12)]
        error, bar = compared((run, model), (rival, written), exact, given, mode)
        ours, theirs = (partial(results, *pair, given[0], mode) for pair in ((run, model), (rival, written)))
        gain = None if failed else compare({"theirs": theirs, "ours": ours}, rounds).gain("ours", "theirs")
    off = f"error {error:.1e} above {bar:.1e}" if error > bar else ""
    return Cell(one.name, door, mode, error, not off, graphs, gain, (first, alone), off or failed)


def compared(
    ours: tuple[Run, nn.Module],
    theirs: tuple[Run, nn.Module],
    exact: nn.Module,
    given: Sequence[Sequence[Tensor]],
    mode: str,
) -> tuple[float, float]:
    """The error that is furthest above its bar, and that bar; in training of the first input where none is above.

    In bfloat16 that of all inputs together.
    """
    found, all_errors = [], []
    for inputs in given:
        true = results(exact, exact, [x.double() for x in inputs], "eval" if mode == "bf16" else mode)
        error, own = (error_of(results(*pair, inputs, mode), true) for pair in (ours, theirs))
        bar = max(WORSE * own, ROUNDED)
        found.append((error, min(bar, FLIPPED) if mode == "train" else bar))
        if mode == "train" and error <= found[-1][1]:
            return found[-1]
        all_errors.append((error, own))
    if mode == "bf16":
        error, own = (math.hypot(*each) / len(each) ** 0.5 for each in zip(*all_errors, strict=True))
        return error, WORSE * own
    return max(found, key=lambda each: each[0] / each[1])


def rival_of(door: str, written: nn.Module, inputs: Sequence[Tensor], mode: str) -> tuple[Run, float | None, str]:
    """What a door is compared with, the seconds of its first call, and what torch's own fails with.

    It comes behind ours, which thus pays for all that a process compiles or imports once.
    """
    if door == "optimize":
        return written, None, ""
    rival = torch.compile(written, backend=door, dynamic=True if mode == "dynamic" else None)
    try:
        with fresh_cache():  # else it would find what was compiled for us
            return rival, first_call(rival, written, inputs, mode), ""
    except Exception as error:
        return written, None, f"{door} alone fails: {type(error).__name__}"


def reason_of(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:160]


def first_call(run: Run, model: nn.Module, inputs: Sequence[Tensor], mode: str) -> float:
    """Seconds of a call, and of its backward in training."""
    start = time.perf_counter()
    results(run, model, inputs, mode)
    return time.perf_counter() - start


@contextmanager
def calibrated_only() -> Iterator[None]:
    """Forget what was chosen before; the calibration of the machine is no model's first call."""
    place = folder()
    assert place is not None
    for other in place.iterdir():
        if other.name != "calibration":
            shutil.rmtree(other)
    yield


def attempt(one: Doored, door: str, mode: str, rounds: int) -> Cell:
    """A cell, whatever happens."""
    try:
        return measure(one, door, mode, rounds)
    except Exception as error:
        return Cell(one.name, door, mode, reason=reason_of(error))


def text_of(cell: Cell | None) -> str:
    """A cell of the table."""
    if cell is None:
        return "-"
    if not cell.passed:
        return cell.reason
    gain = "" if cell.gain is None else f", {cell.gain:.2f}x"
    ours, alone = cell.first
    first = f"{ours:.0f} s ({alone:.0f} s)" if alone is not None else f"{ours:.1f} s"
    return ", ".join(filter(None, [f"pass, {cell.graphs}{gain}", first, cell.reason]))


def table(cells: Sequence[Cell]) -> str:
    """Models and modes by doors: pass, graphs, times faster, seconds of the first call (of the inner backend's own)."""
    found = {(cell.model, cell.mode, cell.door): cell for cell in cells}
    rows = dict.fromkeys((cell.model, cell.mode) for cell in cells)
    lines = [[model, mode, *(text_of(found.get((model, mode, door))) for door in DOORS)] for model, mode in rows]
    return tabulate(lines, headers=["model", "mode", *DOORS], tablefmt="plain", disable_numparse=True)


def cells(chosen: Sequence[Doored], args: argparse.Namespace, found: Mapping[Key, Cell]) -> Iterator[Cell]:
    """All cells that were asked for and have not passed yet, model by model."""
    for one, mode, door in product(chosen, args.mode, args.door):
        before = found.get((one.name, mode, door))
        if before is not None and before.passed:
            continue
        start = time.perf_counter()
        cell = attempt(one, door, mode, args.rounds)
        print(f"{one.name} {mode} {door}: {text_of(cell)} ({time.perf_counter() - start:.0f} s)", flush=True)
        yield cell


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="the models whose name it finds")
    parser.add_argument("--door", choices=DOORS, nargs="+", default=list(DOORS))
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        nargs="+",
        default=[],
        help="the first keeps the cells; what has passed in one of them is not run again",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[Cell]:
    """Measure and print; returns the cells."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    kept = [Cell(**each) for path in args.json if path.exists() for each in json.loads(path.read_text())]
    found = {(cell.model, cell.mode, cell.door): cell for cell in kept}
    with own_cache():
        time_model("cpu", measure=True)
        for cell in cells([one for one in models() if re.search(args.only, one.name)], args, found):
            found[cell.model, cell.mode, cell.door] = cell
            if args.json:
                args.json[0].write_text(json.dumps([asdict(each) for each in found.values()], indent=1))
    order = {one.name: n for n, one in enumerate(models())}
    in_order = sorted(found.values(), key=lambda cell: (order[cell.model], MODES.index(cell.mode)))
    print(f"\n{machine()}\n\n{table(in_order)}")
    return in_order


if __name__ == "__main__":
    main()
