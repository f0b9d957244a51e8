"""What is timed: a region's module on random leaves, in the mode that counts, by eager kernels or as compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch._guards import tracing
from torch.fx import GraphModule

from ce_fx.capture.reading import read
from ce_fx.capture.undisturbed import own_metrics
from ce_fx.lower.extract import copy_of
from ce_fx.lower.hoist import Facts, hoist
from ce_fx.lower.recompute import recomputed
from ce_fx.lower.verify import random_like
from ce_fx.tune.problem import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inner:
    """What runs the rewritten graph, where that is not plain eager torch.

    Attributes:
        name: for the report.
        compiled: a module and its inputs -> what runs it; may raise anything.
        channels_last: it stores the region's images so.
    """

    name: str
    compiled: Callable[[GraphModule, Sequence[Tensor]], Callable[..., Any]]
    channels_last: bool = False


def random_leaves(problem: Problem, channels_last: bool = False) -> list[Tensor]:
    """Random leaves of the true shapes, strides, dtypes and devices; the global random state is not touched.

    They need a gradient where the true ones do, recorded or not: torch chooses kernels by it.

    Args:
        problem: the region.
        channels_last: images, that is, what does not depend on weights only and has four or five axes, are stored so.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    leaves = []
    for n, fake in enumerate(problem.leaves):
        leaf = random_like(fake, generator, n in problem.positive)
        form = _CHANNELS_LAST.get(leaf.dim()) if channels_last and not problem.operands[n].constant else None
        leaf = leaf if form is None else leaf.contiguous(memory_format=form)
        leaves.append(leaf.requires_grad_(fake.requires_grad))
    return leaves


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def forward_of(problem: Problem, module: GraphModule, leaves: Sequence[Tensor]) -> Callable[..., Tensor]:
    """What runs in every call: the module, with `fold` without the steps that depend on weights only."""
    if problem.checkpoint:
        return partial(recomputed, module)
    if not problem.fold:
        return module.forward
    reading = read(module, problem.leaves)
    inputs = module.graph.find_nodes(op="placeholder")
    facts = Facts([inputs[n] for n in problem.constant if n < len(inputs)], reading.ops, reading.fakes, ())
    hoisted = hoist(module, facts)
    if hoisted is None:
        return module.forward
    with torch.no_grad():
        kept = hoisted.weights_gm(*(leaves[n] for n in hoisted.sources if isinstance(n, int)))
    rest = hoisted.rest_gm.forward
    return lambda *given: rest(*given, *kept)


def run_of(forward: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
    """One run in the mode that counts: forward, or with the backward of all leaves that need a gradient."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    result = forward(*leaves)
    if not result.requires_grad:
        return lambda: forward(*leaves)
    cotangent = torch.ones_like(result)
    return lambda: torch.autograd.grad(forward(*leaves), wanted, cotangent, allow_unused=True)


def compiled_runs(
    modules: Sequence[GraphModule], leaves: Sequence[Tensor], inner: Inner
) -> list[Callable[[], object]] | None:
    """Runs of modules as an inner backend compiles them, backward included; None where it cannot be asked here."""
    runs = []
    try:
        for module in modules:
            with _apart():
                forward = _single(inner.compiled(_with_a_tuple(module), leaves))
            with _apart():
                run = run_of(forward, leaves)
            with _apart():
                run()
            runs.append(run)
    except Exception as error:  # a backend may raise anything; the kernels of eager torch are compared then
        log.info("not judged through %s: %s: %s", inner.name, type(error).__name__, error)
        return None
    return runs


def _with_a_tuple(module: GraphModule) -> GraphModule:
    """A copy whose one result is in a tuple, as backends are handed graphs; AOTAutograd's refuse others."""
    module = copy_of(module)
    output = module.graph.output_node()
    output.args = (output.args,)
    module.recompile()
    return module


def _single(forward: Callable[..., Any]) -> Callable[..., Tensor]:
    """A compiled graph's one result."""

    def call(*leaves: Tensor) -> Tensor:
        (result,) = forward(*leaves)
        return cast(Tensor, result)

    return call


@contextmanager
def _apart() -> Iterator[None]:
    """Compile inside another compilation: with tracing state and metrics of one's own."""
    with tracing(None), own_metrics():
        yield
