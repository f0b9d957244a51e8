"""`fold=True`: what depends on weights only is computed once, outside the compiled graph, and handed to it.

The values are made at the first call and kept while every weight that they come from is seen to be unchanged: the same
tensor object, address, version, shape, strides, dtype and device. Some ways of writing leave no such trace. Of these a
step of a torch optimiser, a call with gradients and a train/eval flip are noticed in other ways; after the rest
(`p.data.copy_`, `p.data.add_`, NumPy and DLPack views, `untyped_storage().copy_`) only `ce_fx.refresh` helps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, is_
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch._guards import CompileContext
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed._composable_state import _module_state_mapping as _SHARDED
from torch.fx import GraphModule
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ce_fx.capture.reading import Reading, read
from ce_fx.inner import run_by
from ce_fx.lower.hoist import Facts, Hoisted, Source, hoist
from ce_fx.options import Options
from ce_fx.report.units import si
from ce_fx.rewrite import weight_only

log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """Folded values and what they were made from; replaced as a whole, never changed.

    Attributes:
        values: the folded tensors.
        sources: the weights themselves: while they are held, no other tensor can have their identity or address.
        key: what was to be seen of them before the values were made.
        era: the fold's, at that time.
    """

    values: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]
    key: list[Any] | None
    era: object

    def is_valid(self, sources: Sequence[Tensor], key: list[Any] | None, era: object) -> bool:
        """Whether the values are those of these weights, as they are now."""
        return self.era is era and key == self.key and all(map(is_, sources, self.sources))


class Fold:
    """Runs a compiled graph, whose last inputs are folded values, with values that are up to date.

    Attributes:
        count: values that are folded.
        bytes: their memory.
        family: the Python frame that the graph stands for; its other graphs are for other sizes or modes.
        kept: the values, or None until the next call.
    """

    def __init__(self, gm: GraphModule, run: Callable[..., Any], hoisted: Hoisted, family: object) -> None:
        self.run = run
        self.make = hoisted.weights_gm.forward
        self.fetch = _fetcher(gm, hoisted.sources)
        self.strides = [fake.stride() for fake in hoisted.fakes]
        self.count = len(hoisted.fakes)
        self.bytes = hoisted.bytes
        self.family = family
        self.kept: Kept | None = None
        self.era = object()

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph on the inputs that it was captured with."""
        sources = self.fetch(inputs)
        if torch.is_grad_enabled():  # compiled without; but a gradient must never meet a folded value
            self.drop()
            return self.run(*inputs, *self.make(*sources))
        kept = self.kept
        key = seen(sources)
        if kept is None or not kept.is_valid(sources, key, self.era):
            kept = self._renewed(sources, key)
        return self.run(*inputs, *kept.values)

    def _renewed(self, sources: tuple[Tensor, ...], key: list[Any] | None) -> Kept:
        """Compute the values, and keep them if it can be seen when they are out of date."""
        changed = self.kept is not None
        era = self.era  # taken before the weights are read: what is dropped meanwhile is not used again
        kept = Kept(self._values(sources), sources, key, era)
        if key is None:
            self.drop()
            return kept
        for other in _holding():
            if other is not self and (other.is_stale() or (changed and other.family == self.family)):
                other.drop()
        self.kept = kept
        _hold(self)
        return kept

    def _values(self, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The values, as normal tensors with the strides that the graph was compiled for."""
        with torch.inference_mode(False), torch.no_grad():
            return tuple(map(_laid_out, self.make(*sources), self.strides))

    def drop(self) -> None:
        """Release the values; what another thread is computing now will not be used again either."""
        self.era = object()
        self.kept = None
        _let_go(self)

    def is_stale(self) -> bool:
        """Whether the weights that were used have changed since, as far as can be seen."""
        kept = self.kept
        return kept is not None and not kept.is_valid(kept.sources, seen(kept.sources), self.era)

    def comes_from(self, ids: set[int]) -> bool:
        """Whether one of the weights that were used is among these objects."""
        kept = self.kept
        return kept is not None and not ids.isdisjoint(map(id, kept.sources))


class Writer:
    """Runs a compiled graph after whose call weights may have other values: folds of them are dropped."""

    def __init__(self, gm: GraphModule, run: Callable[..., Any], written: Sequence[Source]) -> None:
        self.run = run
        self.fetch = _fetcher(gm, written)

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph; whatever happens, it may have written."""
        try:
            return self.run(*inputs)
        finally:
            if _HOLDING:
                forget(self.fetch(inputs))


class Running(NamedTuple):
    """What runs a graph.

    Attributes:
        call: takes the graph's inputs.
        fold: what is kept for it, if anything.
        recorded: gradients are recorded in it.
    """

    call: Callable[..., Any]
    fold: Fold | None
    recorded: bool


def run_folded(gm: GraphModule, example_inputs: Sequence[Any], options: Options) -> Running:
    """Hand a graph to the inner backend of the options; with `fold=True` without its weight-only steps.

    Nothing is computed now, for the example inputs may be fake (DDP). Where gradients are recorded nothing is folded.
    It never raises because of a graph that cannot be folded.

    Args:
        gm: a graph from Dynamo, rewritten; where something is folded, its graph becomes the rest.
        example_inputs: as Dynamo gives them.
        options: those of `optimize`.
    """
    recorded = torch.is_grad_enabled()
    if not options.fold:
        return Running(run_by(gm, example_inputs, options), None, recorded)
    everything: tuple[Source, ...] = tuple(range(len(gm.graph.find_nodes(op="placeholder"))))
    if recorded:  # an optimiser will step, in a way that may leave no trace
        return Running(Writer(gm, run_by(gm, example_inputs, options), everything), None, True)
    graph = gm.graph
    try:
        reading = read(gm, example_inputs)
        facts = facts_of(gm, example_inputs, reading)
        written: tuple[Source, ...] = tuple(
            n for n, node in enumerate(graph.find_nodes(op="placeholder")) if node in facts.written
        )
        hoisted = hoist(gm, facts)
        fold = _folded(gm, example_inputs, options, hoisted) if hoisted else None
    except Exception as error:
        log.warning("nothing is folded: %s: %s", type(error).__name__, error, exc_info=log.isEnabledFor(10))
        written, fold = everything, None
        gm.graph = graph
    run = fold or run_by(gm, example_inputs, options)
    # The versions of a batch norm's statistics don't tell that it wrote to them.
    return Running(Writer(gm, run, written) if written else run, fold, False)


def notes_of(runs: Iterable[Running]) -> list[str]:
    """One sentence for the report about some graphs that were compiled with `fold=True`."""
    runs = list(runs)
    folds = [run.fold for run in runs if run.fold is not None]
    if folds and _SHARDED:
        return ["fold: nothing is kept while a module of this process is sharded by FSDP2"]
    if folds:
        count, memory = sum(fold.count for fold in folds), si(sum(fold.bytes for fold in folds), 3)
        one = count == 1
        values = f"{count} weight-only value{'' if one else 's'} ({memory}B)"
        return [f"fold: {values} {'is' if one else 'are'} computed once and kept"]
    if runs and all(run.recorded for run in runs):
        return ["fold: nothing is folded while gradients are recorded; call under torch.no_grad()"]
    return ["fold: nothing to fold; no step that is worth it depends on weights only"] if runs else []


def forget(tensors: Iterable[Tensor]) -> None:
    """Drop what was folded from any of these weights, in whatever model."""
    ids = set(map(id, tensors))
    for fold in _holding():
        if fold.comes_from(ids):
            fold.drop()


def seen(tensors: Sequence[Tensor]) -> list[Any] | None:
    """What is to be seen of some tensors without reading them; None where that would not show a change.

    Tensors of inference mode have no version; fake ones, and those inside functorch's transforms, no address. FSDP2
    gathers weights in every call, maybe to the same address, and keeps their version; which are its own is not to be
    seen of them.
    """
    if _SHARDED or FakeTensor in map(type, tensors):
        return None
    try:
        return [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype, t.device) for t in tensors]
    except RuntimeError:
        return None


_HOLDING: WeakSet[Fold] = WeakSet()
"""The folds that hold values."""
_LOCK = RLock()
_HOOKS: list[Any] = []


def _holding() -> list[Fold]:
    with _LOCK:
        return list(_HOLDING)


def _hold(fold: Fold) -> None:
    with _LOCK:
        _HOLDING.add(fold)
        if not _HOOKS:
            _HOOKS.append(register_optimizer_step_post_hook(_after_step))


def _let_go(fold: Fold) -> None:
    with _LOCK:
        _HOLDING.discard(fold)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Fused optimisers write to weights without a trace. What a compiled step writes has a new version."""
    if not torch.compiler.is_compiling() and _HOLDING:
        forget(weight for group in optimizer.param_groups for weight in group["params"])


def facts_of(gm: GraphModule, example_inputs: Sequence[Any], reading: Reading) -> Facts:
    """What `hoist` has to know about a graph."""
    memory = {storage for _, storage in reading.mutations if storage is not None}
    writing = {node for node, _ in reading.mutations}
    tensors = ((node, fake) for node, fake in reading.fakes.items() if isinstance(fake, Tensor))
    touched = {node for node, t in tensors if t.layout is torch.strided and reading.storage(t) in memory}
    # A module that is called by name may change its mode unseen; Dynamo has none.
    opaque = {*reading.failures, *gm.graph.find_nodes(op="call_module")}
    leaves = {
        node
        for node in weight_only(gm, example_inputs, reading)
        if node.op in ("placeholder", "get_attr") and node not in reading.failures
    }
    ops = {node: found for node, found in reading.ops.items() if node not in opaque}
    return Facts(leaves, ops, reading.fakes, writing | touched)


def _folded(gm: GraphModule, example_inputs: Sequence[Any], options: Options, hoisted: Hoisted) -> Fold:
    """The rest, compiled in place of the graph."""
    gm.graph = hoisted.rest_gm.graph
    inputs = [*example_inputs, *map(_like, hoisted.fakes)]
    running = CompileContext.current_compile_id()
    family = running.frame_id if running else object()
    return Fold(gm, run_by(gm, inputs, options), hoisted, family)


def _like(fake: Any) -> Tensor:
    """A fake tensor that no trace knows."""
    with fake.fake_mode, torch.no_grad():
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)


def _laid_out(value: Tensor, stride: tuple[int, ...]) -> Tensor:
    """A tensor with given strides: kernels may lay their result out in another way than fake ones promise."""
    if value.stride() == stride or 0 in stride or value.dim() != len(stride):
        return value
    return torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device).copy_(value)


def _fetcher(gm: GraphModule, sources: Sequence[Source]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """From a graph's inputs to the weights among them, and those that are attributes."""
    positions = [source for source in sources if isinstance(source, int)]
    attributes = [attrgetter(source) for source in sources if isinstance(source, str)]
    if not attributes:
        return lambda inputs: tuple([inputs[n] for n in positions])
    return lambda inputs: (*[inputs[n] for n in positions], *[attribute(gm) for attribute in attributes])
