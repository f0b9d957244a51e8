"""What one optimised model has been through: the graphs that were compiled, and what was decided in them."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch._guards import CompileContext
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.nn import Parameter

from ce_fx.capture.numpy_attrs import Plain, describe
from ce_fx.fold import Running, notes_of, run_folded
from ce_fx.options import Options
from ce_fx.report import LayerReport, Report
from ce_fx.rewrite import rewrite_graph

log = logging.getLogger(__name__)

_NOT_BUILT = {
    "checkpoint": "checkpoint=True: regions keep their intermediates; recomputation is not built yet",
}


@dataclass(frozen=True)
class Compiled:
    """One graph that was compiled.

    Attributes:
        gm: the graph that runs.
        layers: what was decided in it.
        compiling: Dynamo's compilation of a Python frame that it was made in. Another flag or size compiles the frame
            anew; under DDP one compilation makes a graph for each of its buckets.
        running: what runs it, with what it keeps.
        weights: identities of the parameters that it is given; modules of one class share their frames.
    """

    gm: GraphModule
    layers: tuple[LayerReport, ...]
    compiling: CompileContext | None
    running: Running
    weights: frozenset[int] = frozenset()

    @property
    def frame(self) -> int | None:
        """Dynamo's number of the Python frame."""
        compile_id = self.compiling.compile_id if self.compiling else None
        return compile_id.frame_id if compile_id else None

    def replaces(self, other: Compiled) -> bool:
        """Whether both are the same frame of the same module, compiled for different flags or sizes."""
        if self.compiling is not None and self.compiling is other.compiling:  # another bucket
            return False
        both = self.weights & other.weights
        return self.frame == other.frame and bool(both or not (self.weights and other.weights))


class Session:
    """The compiler of one optimised model, and its memory.

    A copy (deepcopy, pickle) starts empty with the same options.

    Attributes:
        called: a call of the model has come to its end.
        first_call: held during the first.
    """

    def __init__(self, options: Options, title: str = "") -> None:
        self.options = options
        self.title = title
        self.plain: list[Plain] = []
        self.compiled: list[Compiled] = []
        self.called = False
        self.first_call = RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.options.to_dict(), self.title)

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        """The Dynamo backend: rewrite, remember, hand on. It never raises because of a graph."""
        layers = rewritten_or_untouched(gm, example_inputs, self.options, guards=True)
        running = run_folded(gm, example_inputs, self.options)
        compiling = CompileContext.try_get()
        given = (value for value in example_inputs if not isinstance(value, FakeTensor))  # DDP's are new each time
        weights = frozenset(id(value) for value in given if isinstance(value, Parameter))
        self.compiled.append(Compiled(gm, tuple(layers), compiling, running, weights))
        return running.call

    @property
    def graph_modules(self) -> list[GraphModule]:
        """What runs, in the order of compilation."""
        return [each.gm for each in self.compiled]

    def report(self) -> Report:
        """The audit of the latest compilation of every frame."""
        latest = _latest(self.compiled)
        notes = [*describe(self.plain), *(text for name, text in _NOT_BUILT.items() if getattr(self.options, name))]
        if self.options.fold:
            folding = [each for each in self.compiled if each.running.fold is not None]
            notes += notes_of(each.running for each in _latest([*latest, *folding]))
        frames = {each.frame for each in latest}
        if len(frames) > 1:
            notes.append(f"the model was captured as {len(frames)} graphs; no region reaches across a graph break")
        buckets = max(Counter(each.compiling for each in latest if each.compiling).values(), default=1)
        if buckets > 1:
            notes.append(f"DDP split a graph into {buckets}, one for each of its buckets; no region reaches across")
        layers = tuple(layer for each in latest for layer in each.layers)
        return Report(layers, self.title, self.options.objective, tuple(notes))

    def summary(self) -> str:
        """One line: what happened."""
        return self.report().summary() if self.compiled else "not captured yet"

    def drop(self) -> None:
        """Release all that `fold=True` keeps; the next call computes it anew."""
        for each in self.compiled:
            if each.running.fold is not None:
                each.running.fold.drop()

    def warn_of_what_is_missing(self) -> None:
        """Options that are accepted but have no effect yet are said aloud once."""
        for name, text in _NOT_BUILT.items():
            if getattr(self.options, name):
                warnings.warn(f"ce_fx: {text}", stacklevel=4)


def _latest(compiled: Sequence[Compiled]) -> list[Compiled]:
    """The latest compilation of every frame of every module, in the order of the first."""
    found: list[Compiled] = []
    for each in compiled:
        replaced = [n for n, old in enumerate(found) if each.replaces(old)]
        place = replaced[0] if replaced else len(found)
        found = [*found[:place], each, *(old for old in found[place:] if not each.replaces(old))]
    return found


def _empty(options: dict[str, Any], title: str) -> Session:
    return Session(Options.of(options), title)


def rewritten_or_untouched(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, bodies: bool = True, guards: bool = False
) -> list[LayerReport]:
    """As `rewrite_graph`; if anything goes wrong the graph is what it was, and the log says why."""
    try:
        with _unseen():
            return rewrite_graph(gm, example_inputs, options, bodies, guards)
    except Exception as error:
        log.warning("a graph runs as written: %s: %s", type(error).__name__, error, exc_info=log.isEnabledFor(10))
        reason = f"ce_fx failed on this graph ({type(error).__name__}: {error}); it runs as written"
        return [LayerReport("(graph)", "", "refused", reason, 0, 0, 0, 0)]


def _unseen() -> AbstractContextManager[Any]:
    """Hooks of who calls must not see what is saved for backwards here: a checkpoint would count it as its own."""
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_itself, _itself)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
