"""What one optimised model has been through: the graphs that were compiled, and what was decided in them."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from threading import RLock
from typing import Any

import torch
from torch._guards import CompileContext
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.nn import Parameter

from ce_fx.capture.blank import settle
from ce_fx.capture.numpy_attrs import Plain, describe
from ce_fx.compiled import Compiled, latest, varied
from ce_fx.fold import notes_of
from ce_fx.handing_on import handed_on
from ce_fx.options import Options
from ce_fx.parted import Parted, cost_of, parted
from ce_fx.report import LayerReport, Report
from ce_fx.report.graph import together
from ce_fx.watch import Break, Listener, break_of, recompile_reason

log = logging.getLogger(__name__)


class Session(Listener):
    """The compiler of one optimised model, and its memory.

    A copy (deepcopy, pickle) starts empty with the same options.

    Attributes:
        called: a call of the model has come to its end.
        first_call: held during the first.
        skipped: frames of which nothing was captured, or nothing before a graph break.
        last_break: the reason of the latest graph break.
        limits: a sentence for each frame that was compiled as often as Dynamo will.
    """

    def __init__(self, options: Options, title: str = "") -> None:
        self.options = options
        self.title = title
        self.plain: list[Plain] = []
        self.compiled: list[Compiled] = []
        self.skipped: list[Break] = []
        self.limits: list[str] = []
        self.last_break = ""
        self.called = False
        self.first_call = RLock()
        self._settled = 0
        self._parted: dict[tuple[int, int], list[Parted]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.options.to_dict(), self.title)

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        """The Dynamo backend: rewrite, remember, hand on. It never raises because of a graph."""
        found, running = handed_on(gm, example_inputs, self.options)
        compiling = CompileContext.try_get()
        # DDP hands on fake tensors, which are new each time
        known = (isinstance(value, Parameter) and not isinstance(value, FakeTensor) for value in example_inputs)
        parameters = tuple(id(value) if one else None for value, one in zip(example_inputs, known, strict=True))
        new = Compiled(
            gm,
            found,
            compiling,
            running,
            parameters,
            break_of(gm),
            recompile_reason(),
            torch.is_grad_enabled(),
        )
        self.compiled.append(new)
        self._warn_of_the_limit([each for each in self.compiled if new.replaces(each) or each is new])
        return running.call

    def missed(self, missed: Break, compile_id: str) -> None:
        """Dynamo captured nothing of a frame, or nothing since it began."""
        captured = any(each.ended and str(each.compile_id) == compile_id for each in self.compiled)
        if not captured and missed not in self.skipped:
            self.skipped.append(missed)

    def stopped(self, reason: str) -> None:
        """Remember it: it tells why nothing was captured, where that is so."""
        self.last_break = reason

    def compilation_ended(self) -> None:
        """What was compiled is kept to be looked at, and not all that it was compiled with."""
        for each in self.compiled[self._settled :]:
            settle(each.gm)
        self._settled = len(self.compiled)

    @property
    def graph_modules(self) -> list[GraphModule]:
        """What runs, in the order of compilation."""
        return [each.gm for each in self.compiled]

    def report(self) -> Report:
        """The audit of the latest compilation of every frame."""
        found = latest(self.compiled)
        notes = list(describe(self.plain))
        if self.options.fold:
            folding = [each for each in self.compiled if each.running.fold is not None]
            notes += notes_of(each.running for each in latest([*found, *folding]))
        frames = {each.frame for each in found}
        if len(frames) > 1:
            notes.append(
                f"the model was captured as {len(frames)} graphs; no region reaches across a graph break, and what "
                f"runs between graphs is not counted"
            )
        for before, after in pairwise([*found, None]):
            if before is not None and before.ended is not None:
                notes.append(f"graph break at {before.ended}{self._cost(before, after)}")
        notes += [f"graph break before any op, or a frame skipped, at {skipped}" for skipped in self.skipped]
        notes += self.limits
        buckets = max(Counter(each.compiling for each in found if each.compiling).values(), default=1)
        if buckets > 1:
            notes.append(f"DDP split a graph into {buckets}, one for each of its buckets; no region reaches across")
        if self.called and not self.compiled:
            return Report((uncaptured(self._why()),), self.title, self.options.objective, tuple(notes))
        return replace(_report(found, self.title, self.options, notes), captured=bool(self.compiled))

    def summary(self) -> str:
        """One line: what happened."""
        if self.compiled:
            return _report(latest(self.compiled), self.title, self.options).summary()
        why = f": {self.skipped[-1]}" if self.skipped else ""
        return f"nothing was captured, the model runs as written{why}" if self.called else "not captured yet"

    def _why(self) -> str:
        """Why nothing was captured."""
        if self.skipped:
            return self.skipped[-1].reason
        return self.last_break or "Dynamo skips its code, or found no tensor op in it"

    def _cost(self, before: Compiled, after: Compiled | None) -> str:
        """What a graph break costs, worked out once."""
        if after is None:
            return ""
        key = id(before), id(after)
        if key not in self._parted:
            try:
                self._parted[key] = parted(before, after, self.options)
            except Exception as error:
                log.debug("what a graph break costs is not known", exc_info=error)
                return ""
        return f"; {cost_of(self._parted[key])}"

    def _warn_of_the_limit(self, variants: Sequence[Compiled]) -> None:
        """Say it once when a frame has been compiled as often as Dynamo will: what comes with new values runs eager."""
        limit = torch._dynamo.config.recompile_limit
        if len(variants) != limit:
            return
        self.limits.append(
            f"a part of the model was compiled {limit} times (torch._dynamo.config.recompile_limit): from now on it "
            f"runs as written where it would be compiled again. What varied: {varied(variants)}. Sizes may vary in "
            f"one graph with dynamic=True; numbers and flags should not"
        )
        warnings.warn(f"ce_fx: {self.title}: {self.limits[-1]}", stacklevel=2)

    def drop(self) -> None:
        """Release all that `fold=True` keeps; the next call computes it anew."""
        for each in self.compiled:
            if each.running.fold is not None:
                each.running.fold.drop()


def uncaptured(why: str) -> LayerReport:
    """The row of a model that could not be captured: nothing is known of what it computes."""
    reason = f"nothing was captured; the model runs as written: {why}"
    return LayerReport("(model)", "", "refused", reason, None, None, None, None)


def _report(compiled: Sequence[Compiled], title: str, options: Options, notes: Sequence[str] = ()) -> Report:
    whole = together(each.found for each in compiled)
    return Report(whole.layers, title, options.objective, tuple(notes), whole.elsewhere, whole.bytes)


def _empty(options: dict[str, Any], title: str) -> Session:
    return Session(Options.of(options), title)
