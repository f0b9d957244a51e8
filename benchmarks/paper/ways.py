"""The candidates: one network with the same weights, evaluated in every way that is compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ce_fx
from benchmarks.models import by_hand
from benchmarks.paper.orders import checkpointed, left_to_right, rebuilt
from benchmarks.paper.workloads import Batch

LEFT, LEFT_CHECKPOINTED, REBUILT, DENSE = "left to right", "left to right, checkpointed", "rebuilt", "dense"
BY_INDUCTOR = {"rebuilt inductor": REBUILT, "dense inductor": DENSE}
"""Rivals that Inductor compiles, and what they are without it."""
OURS: dict[str, dict[str, Any]] = {
    "ce_fx flops": {"objective": "flops"},
    "ce_fx time": {"objective": "time"},
    "ce_fx checkpoint": {"objective": "time", "checkpoint": True},
    "ce_fx memory": {"objective": "memory"},
    "ce_fx inductor": {"objective": "time", "inner": "inductor"},
}
"""Options of `ce_fx.optimize` by candidate."""
OURS_BY_INDUCTOR = "ce_fx inductor"
TRAINING_ONLY = (LEFT_CHECKPOINTED, "ce_fx checkpoint", "ce_fx memory")


def names(mode: str, inductor: bool) -> list[str]:
    """The candidates of a mode, in the order of the table."""
    every = [LEFT, LEFT_CHECKPOINTED, REBUILT, DENSE, *BY_INDUCTOR, *OURS]
    slow = () if inductor else (*BY_INDUCTOR, OURS_BY_INDUCTOR)
    skipped = {*(TRAINING_ONLY if mode != "train" else ()), *slow}
    return [name for name in every if name not in skipped]


@dataclass(frozen=True)
class Way:
    """One candidate.

    Attributes:
        run: the network, called with a batch.
        model: which has its parameters.
        step: over all batches: the forward, and in training the gradients of all weights for a fixed one of the output.
    """

    run: Callable[..., Tensor]
    model: nn.Module
    step: Callable[[], object]


def gradients(mode: str) -> AbstractContextManager[Any]:
    """With gradients in training, without in inference."""
    return torch.set_grad_enabled(mode == "train")


def way(name: str, model: nn.Module, batches: Sequence[Batch], mode: str, tune: bool | str = "auto") -> Way:
    """A factorised network evaluated in one way; to be called and run within `gradients`.

    Args:
        name: one of `names`.
        model: the network, in the mode.
        batches: of a step.
        mode: "train" or "inference".
        tune: as in `ce_fx.optimize`.
    """
    own: nn.Module = model
    run: Callable[..., Tensor] = model
    if name in BY_INDUCTOR:
        plain = way(BY_INDUCTOR[name], model, batches, mode)
        own, run = plain.model, torch.compile(plain.run)
    elif name == DENSE:
        own = run = ce_fx.nn.densify(copy.deepcopy(model))
    elif name in OURS:
        run = ce_fx.optimize(model, batches[0], tune=tune, verbose=False, **OURS[name])
    else:
        orders = {LEFT: left_to_right, LEFT_CHECKPOINTED: checkpointed, REBUILT: rebuilt}
        run = by_hand(model, orders[name], "ConvEinsum")
    return Way(run, own, partial(_step, run, own, batches, mode))


def _step(run: Callable[..., Tensor], model: nn.Module, batches: Sequence[Batch], mode: str) -> None:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for batch in batches:
        y = run(*batch)
        if mode == "train":
            torch.autograd.grad(y, weights, seed(y))


def seed(y: Tensor) -> Tensor:
    """The gradient of an output, not all ones: a softmax and a norm would pass zeros on."""
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)


def results(one: Way, batches: Sequence[Batch], mode: str) -> Iterator[Tensor]:
    """What a network gives, and in training all gradients of its weights as one vector, batch by batch."""
    weights = [weight for weight in one.model.parameters() if weight.requires_grad]
    for batch in batches:
        y = one.run(*batch)
        yield y.detach()
        if mode == "train":
            yield torch.cat([each.flatten() for each in torch.autograd.grad(y, weights, seed(y))])
