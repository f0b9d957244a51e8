"""Measure one case in one mode: all candidates interleaved, first calls, peak bytes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import ce_fx
from benchmarks.cases import Case
from benchmarks.harness import Timing, allocated, compare
from benchmarks.results import Row

MODES = ("forward", "train")
FINALISTS = 2
"""Hand-written orders that are measured along with the others; the rest are passed over after a first look."""
LONG = 0.7
"""Seconds of one run from which on fewer rounds do: its noise is small."""


@dataclass(frozen=True)
class Settings:
    """How a case is measured.

    Attributes:
        rounds: of the final comparison.
        budget: seconds of one timing of one candidate, at least.
        tune: as in `ce_fx.optimize`.
        inductor: measure Inductor as well, as written and after ce_fx.
        device: where to run.
        small: the inputs of tests.
        batch: of the inputs, instead of the case's own.
        autocast: to which dtype, or None.
    """

    rounds: int = 9
    budget: float = 0.03
    tune: str | bool = "auto"
    inductor: bool = False
    device: str = "cpu"
    small: bool = False
    batch: int | None = None
    autocast: torch.dtype | None = None

    @property
    def rounding(self) -> float:
        """By which two orders of a network may differ, of the largest output: in half precision, TF32, or float32."""
        return 0.05 if self.autocast else 0.02 if self.device.startswith("cuda") else 1e-3

    def input(self, case: Case) -> Tensor:
        """A case's x, where it is to run."""
        x = case.input(self.small)
        if self.batch is not None:
            x = torch.randn((self.batch, *x.shape[1:]), generator=torch.Generator().manual_seed(1))
        return x.to(self.device)

    def context(self, mode: str) -> AbstractContextManager[Any]:
        """With gradients or without, and under autocast."""
        stack = ExitStack()
        stack.enter_context(torch.set_grad_enabled(mode == "train"))
        if self.autocast is not None:
            stack.enter_context(torch.autocast(torch.device(self.device).type, self.autocast))
        return stack


def measure(case: Case, mode: str, settings: Settings) -> Row:
    """One row; an error of a candidate other than ce_fx is the row's error too.

    Args:
        case: what to measure.
        mode: "forward" or "train".
        settings: how.
    """
    x = settings.input(case).requires_grad_(mode == "train" and not case.data)
    with settings.context(mode):
        eager = None if case.fast else _first_eager(case, mode, settings, x)
        cold, *_ = _first_call(case, mode, settings, x, seed=0)
        warm, module, fast = _first_call(case, mode, settings, x, seed=1)
        runs: dict[str, Callable[[Tensor], Any]] = {"written": module, "ce_fx": fast}
        if settings.inductor and not case.eager_only:
            runs["inductor"] = torch.compile(module)
            runs["ce_fx+inductor"] = ce_fx.optimize(module, (x,), tune=settings.tune, inner="inductor")
        step = _forward if mode == "forward" else _training(module, x)
        difference = _difference(module, fast, x)
        candidates = {name: step(run, x) for name, run in runs.items()}
        hands = {f"hand: {name}": step(bind(module), x) for name, bind in case.orders.items()}
        candidates |= finalists(hands, settings)
        if case.dense is not None and mode == "forward":
            candidates["dense"] = step(case.dense(module), x)
        timing = in_turn(candidates, settings)
        peak = _peaks(candidates, fast, settings)
    return Row(
        case.name,
        mode,
        timing.seconds,
        _gains(timing),
        spread=timing.spread("ce_fx", "written"),
        peak=peak,
        first=(cold, warm),
        first_eager=eager,
        decisions=_decisions(fast),
        reasons=dict(Counter(f"{layer.decision}: {layer.reason}" for layer in _layers(fast))),
        difference=difference,
        rounding=settings.rounding,
        idle=case.idle,
    )


def _first_call(case: Case, mode: str, settings: Settings, x: Tensor, seed: int) -> tuple[float, nn.Module, nn.Module]:
    """Seconds until a new module's first result, the module, and what was made of it."""
    module = _fresh(case, mode, settings, seed)
    start = time.perf_counter()
    if case.fast is not None:
        fast = case.fast(module)
        fast(x)
    else:
        fast = ce_fx.optimize(module, (x,), tune=settings.tune)
    return time.perf_counter() - start, module, fast


def _first_eager(case: Case, mode: str, settings: Settings, x: Tensor) -> float:
    """Seconds until Dynamo alone has captured a new module and run it once; the better of two."""
    times = []
    for seed in (2, 3):
        module = _fresh(case, mode, settings, seed)
        start = time.perf_counter()
        torch.compile(module, backend="eager")(x)
        times.append(time.perf_counter() - start)
    return min(times)


def _fresh(case: Case, mode: str, settings: Settings, seed: int) -> nn.Module:
    torch._dynamo.reset()  # the classes' code is shared: Dynamo would give up after eight modules of one class
    return case.module(seed).to(settings.device).train(mode == "train")


def _forward(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    return lambda: run(x)


def _training(module: nn.Module, x: Tensor) -> Callable[[Callable[[Tensor], Tensor], Tensor], Callable[[], object]]:
    """Forward, and the gradients of x and of every parameter that needs one, for one fixed gradient of the output."""
    inputs = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]
    seed = torch.randn_like(module(x))

    def step(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(x), inputs, seed)

    return step


def _difference(module: nn.Module, fast: nn.Module, x: Tensor) -> float:
    expected = module(x).detach()
    return float((fast(x).detach() - expected).abs().max() / expected.abs().max())


def in_turn(candidates: dict[str, Callable[[], object]], settings: Settings) -> Timing:
    """All candidates interleaved; fewer rounds where one run of "written" is long."""
    start = time.perf_counter()
    candidates["written"]()
    rounds = min(settings.rounds, 5) if time.perf_counter() - start > LONG else settings.rounds
    return compare(candidates, rounds, settings.budget)


def finalists(hands: dict[str, Callable[[], object]], settings: Settings) -> dict[str, Callable[[], object]]:
    """The few orders written by hand that are worth a place in the final comparison."""
    if len(hands) <= FINALISTS:
        return hands
    timing = compare(hands, min(3, settings.rounds), settings.budget / 2)
    return {name: hands[name] for name in sorted(hands, key=timing.seconds.__getitem__)[:FINALISTS]}


AnyRow = TypeVar("AnyRow", bound=Row)


def attempt(
    label: str, run: Callable[[], AnyRow], failed: Callable[[str], AnyRow], mark: Callable[[AnyRow], str]
) -> AnyRow:
    """One row, with progress on stderr; where it fails, a row that says so.

    Args:
        label: what is measured.
        run: measures it.
        failed: makes a row of an error.
        mark: what to print beside the ratio.
    """
    start = time.perf_counter()
    try:
        row = run()
    except Exception as error:  # the other rows are still wanted; the table shows what happened
        row = failed(f"{type(error).__name__}: {error}"[:200])
    result = row.error or f"{row.gain['written']:.2f}x {mark(row)}"
    print(f"{label}: {result} ({time.perf_counter() - start:.1f} s)", file=sys.stderr, flush=True)
    return row


def _gains(timing: Timing) -> dict[str, float]:
    gains = {name: timing.gain("ce_fx", name) for name in timing.seconds if name != "ce_fx"}
    if "ce_fx+inductor" in timing.seconds:
        gains["ce_fx+inductor/inductor"] = timing.gain("ce_fx+inductor", "inductor")
    return gains


def _peaks(candidates: dict[str, Callable[[], object]], fast: nn.Module, settings: Settings) -> tuple[int, int] | None:
    """On CUDA what the allocator saw; elsewhere the largest intermediates that the report knows of."""
    if settings.device.startswith("cuda"):
        return allocated(candidates["written"]), allocated(candidates["ce_fx"])
    layers = _layers(fast)
    if not layers:
        return None
    return max(layer.peak_before for layer in layers), max(layer.peak_after for layer in layers)


def _layers(fast: nn.Module) -> tuple[ce_fx.LayerReport, ...]:
    try:
        return ce_fx.report(fast).layers
    except ce_fx.CeFxError:
        return ()  # a case with its own `fast` was not optimised


def _decisions(fast: nn.Module) -> str:
    layers = _layers(fast)
    counts = {d: sum(layer.decision == d for layer in layers) for d in ("rewritten", "kept", "refused")}
    return ", ".join(f"{count} {decision}" for decision, count in counts.items() if count)
