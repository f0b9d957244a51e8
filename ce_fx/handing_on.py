"""A graph from Dynamo on its way: rewritten, and handed to the inner compiler; at worst as it was written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule

from ce_fx.capture.undisturbed import own_metrics
from ce_fx.fold import Running, run_folded
from ce_fx.guards import Guards
from ce_fx.lower.extract import copy_of
from ce_fx.lower.recompute import drop_bodies, has_bodies
from ce_fx.options import Options
from ce_fx.report import GraphReport, LayerReport
from ce_fx.rewrite import rewrite_graph
from ce_fx.traces import Trace

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def handed_on(gm: GraphModule, example_inputs: Sequence[Any], options: Options) -> tuple[GraphReport, Running]:
    """Rewrite a graph and hand it to the inner compiler; where that fails on what was rewritten, as it was written.

    Inductor, for one, does not compile all graphs of symbolic sizes that torch can run. Nor is a graph that a compiler
    takes a minute for compiled anew where another plan would be a tenth better; and its lowerings fail on symbols with
    an upper bound.
    """
    eager = options.inner == "eager"
    try:
        written = None if eager else copy_of(gm)
    except Exception as error:  # without it there is no way back
        return _untouched(error), run_folded(gm, example_inputs, options)
    found = rewritten_or_untouched(gm, example_inputs, options, guards="close" if eager else "valid")
    changed = any(layer.decision == "rewritten" for layer in found.layers) or has_bodies(gm)
    if written is None or not changed:
        return found, run_folded(gm, example_inputs, options)
    # AOTAutograd compiles a backward when it is called, or keeps its failure until then: too late for another graph.
    try:
        with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
            return found, run_folded(gm, example_inputs, options)
    except torch._dynamo.exc.RestartAnalysis:  # how a compiler asks Dynamo to trace once more
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        log.warning("the inner compiler fails on a rewritten graph, which runs as written: %s", why)
    for name, body in written.named_children():
        gm.set_submodule(name, body)
    gm.graph = written.graph
    drop_bodies(gm)
    reason = f"the inner compiler failed on the rewritten graph ({why})"
    with own_metrics():
        return found.with_layers(lambda layer: layer.taken_back(reason)), run_folded(gm, example_inputs, options)


def rewritten_or_untouched(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, bodies: bool = True, guards: Guards = "none"
) -> GraphReport:
    """As `rewrite_graph`; if anything goes wrong the graph is what it was, and the log says why."""
    trace = _traced(lambda: Trace(gm, options.objective))
    try:
        with _unseen():
            found = rewrite_graph(gm, example_inputs, options, bodies, guards)
    except Exception as error:
        found = _untouched(error)
    if trace is not None:
        _traced(lambda: trace.ended(found))
    return found


def _untouched(error: Exception) -> GraphReport:
    """What is reported of a graph that is left as it was because of a failure of ours."""
    log.warning("a graph runs as written: %s: %s", type(error).__name__, error, exc_info=log.isEnabledFor(10))
    reason = f"ce_fx failed on this graph ({type(error).__name__}: {error}); it runs as written"
    return GraphReport((LayerReport("(graph)", "", "refused", reason, None, None, None, None),))


def _traced(show: Callable[[], Result]) -> Result | None:
    """Nothing is undone, and nobody's model fails, because of what is shown of it."""
    try:
        return show()
    except Exception as error:
        log.warning("a graph is not traced: %s: %s", type(error).__name__, error, exc_info=log.isEnabledFor(10))
        return None


def _unseen() -> AbstractContextManager[Any]:
    """Hooks of who calls must not see what is saved for backwards here: a checkpoint would count it as its own."""
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_itself, _itself)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
