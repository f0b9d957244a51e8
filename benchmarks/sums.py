"""Blocks that are sums of products, as written, by hand and by ce_fx: `python -m benchmarks.sums --help`.

One row a block and mode; all candidates of a row take turns in one process, and ratios are medians of the ratios of
rounds. With `--fold` the rows of forward have `fold=True` as well; forward is also compared with what was computed once
by hand. Training is forward and backward, to the inputs and to every parameter that is not frozen.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import ce_fx
from benchmarks.bars import SLOWEST
from benchmarks.blocks import BLOCKS, Bind, Block
from benchmarks.cases import regex
from benchmarks.harness import Timing, machine
from benchmarks.measure import MODES, Settings, attempt, finalists, in_turn
from benchmarks.results import FOLDER, Row, Run, changes, last, save
from benchmarks.table import TUNE, own_cache
from ce_fx.report.units import si
from ce_fx.tune.calibrate import time_model

OURS = ("ce_fx", "ce_fx fold")
NEAR = 1.03
"""Less than this is a tie."""


@dataclass(frozen=True)
class SumRow(Row):
    """One block in one mode.

    Attributes:
        flops: before and after, by candidate, as its report has them; weight-only steps that are folded count nothing.
        regions: of each candidate, a line for every region: decision, string, reason, FLOPs, steps.
        calls: seconds of the first call of each candidate.
    """

    flops: dict[str, tuple[int, int]] | None = None
    regions: dict[str, list[str]] | None = None
    calls: dict[str, float] | None = None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="REGEX", help="the blocks whose name it finds")
    parser.add_argument("--mode", choices=[*MODES, "both"], default="both")
    parser.add_argument("--fold", action="store_true", help="one more column in forward: ce_fx with fold=True")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tune", choices=list(TUNE), default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--opt-einsum", action="store_true", help="let torch.einsum use it; else it goes left to right")
    parser.add_argument("--small", action="store_true", help="the sizes of the tests: times mean nothing")
    parser.add_argument("--verbose", action="store_true", help="print the regions below each row")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write; else benchmarks/results")
    parser.add_argument("--list", action="store_true", help="print the names of the blocks")
    return parser.parse_args(arguments)


def chosen(only: str | None, mode: str) -> list[tuple[Block, str]]:
    """Blocks whose name a regular expression finds, with the modes that they are meant for.

    Raises:
        ValueError: the expression is bad, or finds nothing.
    """
    pattern = regex(only)
    modes = MODES if mode == "both" else (mode,)
    found = [(b, m) for b in BLOCKS.values() if pattern.search(b.name) for m in modes if b.mode in ("both", m)]
    if not found:
        raise ValueError(f"--only {only!r} finds no block that has mode {mode!r}; --list prints the names")
    return found


def measure(block: Block, mode: str, settings: Settings, fold: bool = False) -> SumRow:
    """One row.

    Args:
        block: what to measure.
        mode: "forward" or "train".
        settings: how.
        fold: with `fold=True` as well, if the mode is forward.
    """
    torch._dynamo.reset()
    training = mode == "train"
    module, inputs, _ = block(small=settings.small)
    module.to(settings.device).train(training)
    inputs = tuple(x.to(settings.device).requires_grad_(training) for x in inputs)
    with torch.set_grad_enabled(training):
        fast, calls = {}, {}
        for name in OURS if fold and not training else OURS[:1]:
            start = time.perf_counter()
            fast[name] = ce_fx.optimize(module, inputs, tune=settings.tune, fold=name != "ce_fx")
            fast[name](*inputs)
            calls[name] = time.perf_counter() - start
        step = _training(module, inputs) if training else _forward(inputs)
        hands = block.orders if training else {**block.orders, **_named_once(block)}
        by_hand = {f"hand: {name}": step(bind(module)) for name, bind in hands.items()}
        candidates = {"written": step(module), **{name: step(each) for name, each in fast.items()}}
        candidates |= finalists(by_hand, settings)
        timing = in_turn(candidates, settings)
        difference = max(_difference(module, each, inputs) for each in fast.values())
    reports = {name: ce_fx.report(each) for name, each in fast.items()}
    layers = reports["ce_fx"].layers
    counts = Counter(layer.decision for layer in layers)
    return SumRow(
        block.name,
        mode,
        timing.seconds,
        _gains(timing),
        spread=timing.spread("ce_fx", "written"),
        decisions=", ".join(f"{count} {decision}" for decision, count in counts.items()),
        reasons=dict(Counter(f"{layer.decision}: {layer.reason}" for layer in layers)),
        difference=difference,
        idle=bool(block.refused),
        flops={name: (report.flops_before, report.flops_after) for name, report in reports.items()},
        regions={name: _regions(report) for name, report in reports.items()},
        calls=calls,
    )


def _named_once(block: Block) -> dict[str, Bind]:
    return {f"once, {name}": bind for name, bind in block.once.items()}


Step = Callable[[Callable[..., Tensor]], Callable[[], object]]


def _forward(inputs: tuple[Tensor, ...]) -> Step:
    return lambda run: lambda: run(*inputs)


def _training(module: nn.Module, inputs: tuple[Tensor, ...]) -> Step:
    """Forward, and the gradients of the inputs and of what is not frozen, for one fixed gradient of the output."""
    leaves = [tensor for tensor in (*inputs, *module.parameters()) if tensor.requires_grad]
    seed = torch.randn_like(module(*inputs))
    return lambda run: lambda: torch.autograd.grad(run(*inputs), leaves, seed)


def _difference(module: nn.Module, fast: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Relative to the largest output; buffers, which a batch norm writes to, start the same."""
    before = [buffer.clone() for buffer in module.buffers()]
    expected = module(*inputs).detach()
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), before, strict=True):
            buffer.copy_(value)
    return float((fast(*inputs).detach() - expected).abs().max() / expected.abs().max())


def _gains(timing: Timing) -> dict[str, float]:
    """How ce_fx compares with each other candidate, and `fold` likewise under "ce_fx fold/<name>"."""
    others = [name for name in timing.seconds if name not in OURS]
    gains = {name: timing.gain("ce_fx", name) for name in others}
    if "ce_fx fold" in timing.seconds:
        gains |= {f"ce_fx fold/{name}": timing.gain("ce_fx fold", name) for name in others}
    return gains


def _regions(report: ce_fx.Report) -> list[str]:
    lines = []
    for layer in report.layers:
        flops = f"{si(layer.flops_before, 3)} -> {si(layer.flops_after, 3)}FLOP"
        lines.append(f"{layer.decision}  {layer.expression or layer.name}  {layer.reason}  {flops}")
        lines += [f"    {step}" for step in layer.plan if layer.decision == "rewritten"]
    return [*lines, *(f"note: {note}" for note in report.notes)]


def mark(row: SumRow) -> str:
    """`<` for what is slower than as written, `h` for what is slower than by hand, `?` where a result is wrong."""
    if row.difference > 1e-3:
        return "?"
    ours = "ce_fx fold/" if "ce_fx fold" in row.seconds else ""
    slow = min(row.gain["written"], row.gain.get(f"{ours}written", 1.0)) < SLOWEST
    behind = row.best_hand is not None and row.gain[f"{ours}{row.best_hand}"] < 1 / NEAR
    return "<" * slow + "h" * behind


def table(rows: Sequence[SumRow]) -> str:
    """The rows: times in ms; ratios of ce_fx, and of fold where it was measured, over as written and the best hand."""
    heads = ["block", "mode", "FLOP", "", "fold FLOP", "written ms", "by hand", "ce_fx", "fold"]
    heads += ["x written", "x hand", "fold x written", "fold x hand", "", "±", "hand", "first s", "decisions"]
    cells = [[row.name, row.mode, row.error] if row.error else _cells(row) for row in rows]
    return tabulate(
        cells,
        headers=heads,
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left", "left", *["right"] * 11, "left", "right", "left", "right", "left"],
    )


def _cells(row: SumRow) -> list[str]:
    hand, flops, calls = row.best_hand, row.flops or {}, row.calls or {}
    before, after = flops["ce_fx"]

    def over(ours: str, name: str | None) -> str:
        gain = row.gain.get(f"{ours}{name}")
        return f"{gain:.2f}" if gain else "-"

    return [
        row.name,
        row.mode,
        si(before, 3),
        f"-> {si(after, 3)}",
        si(flops["ce_fx fold"][1], 3) if "ce_fx fold" in flops else "-",
        *(f"{row.seconds[name] * 1e3:.3g}" if name in row.seconds else "-" for name in ("written", hand or "", *OURS)),
        over("", "written"),
        over("", hand),
        over("ce_fx fold/", "written"),
        over("ce_fx fold/", hand),
        mark(row),
        f"{row.spread:.0%}",
        hand.removeprefix("hand: ") if hand else "-",
        ", ".join(f"{seconds:.1f}" for seconds in calls.values()),
        row.decisions,
    ]


def measured(found: Sequence[tuple[Block, str]], settings: Settings, fold: bool) -> Iterator[SumRow]:
    """Row by row; a block that fails is a row that says so."""
    for number, (block, mode) in enumerate(found, 1):
        yield attempt(
            f"[{number}/{len(found)}] {block.name} {mode}",
            partial(measure, block, mode, settings, fold),
            partial(_failed, block, mode),
            mark,
        )


def _failed(block: Block, mode: str, error: str) -> SumRow:
    return SumRow(block.name, mode, error=error)


def main(arguments: Sequence[str] | None = None) -> Run:
    """Measure, print, save.

    Returns:
        what was measured.
    """
    args = parse(arguments)
    if args.list:
        print("\n".join(BLOCKS))
        return Run(machine(), {})
    torch.set_num_threads(args.threads)
    found = chosen(args.only, args.mode)
    options = {"benchmark": "sums", "tune": args.tune, "device": args.device, "small": args.small}
    options["opt_einsum"] = args.opt_einsum
    tune: Any = TUNE[args.tune]
    settings = Settings(args.rounds, tune=tune, device=args.device, small=args.small)
    path = args.json or FOLDER / f"sums-{time.strftime('%Y%m%d-%H%M%S')}.json"
    run, rows = Run(machine(), options), []
    warnings.filterwarnings("ignore", message=".*TF32.*")
    with own_cache(), torch.backends.opt_einsum.flags(enabled=args.opt_einsum):
        time_model(settings.device, measure=settings.tune is not False)
        for row in measured(found, settings, args.fold):
            rows.append(row)
            run = run.with_rows([row])
            save(run, path)
    print(f"{run.machine}, tune {args.tune}, {args.device}\n\n{table(rows)}")
    if args.verbose:
        print("\n".join(["", *_verbose(rows)]))
    print(closing(rows, run, last(run, besides=path)))
    return run


def _verbose(rows: Sequence[SumRow]) -> Iterator[str]:
    for row in rows:
        for name, lines in (row.regions or {}).items():
            yield f"{row.name} {row.mode}, {name}, difference {row.difference:.0e}"
            yield from (f"    {line}" for line in lines)


def closing(rows: Sequence[SumRow], run: Run, before: Run | None) -> str:
    """The rows that lost and why, and those whose ratio is another than in the last comparable run."""
    lines = [""]
    for row in rows:
        if not row.error and mark(row):
            reasons = "; ".join(f"{count} {reason}" for reason, count in row.reasons.items())
            lines.append(f"{mark(row)} {row.name} {row.mode}: {reasons or 'nothing was found to rewrite'}")
    if before is not None:
        lines += [f"against the last run: {change}" for change in changes(before, run)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
