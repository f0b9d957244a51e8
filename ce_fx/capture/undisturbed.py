"""Run a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Buffers (batch-norm statistics), modes and random states are afterwards what they were before.

    Buffers are restored in place, and only where they changed; one that was replaced by another tensor comes back.
    """
    tables = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if _has_values(buffer)]
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for table, before in tables:
            table.update({name: buffer for name, buffer in before.items() if name in table})
        with torch.no_grad():
            for buffer, values in buffers:
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def _has_values(buffer: Tensor) -> bool:
    """Whether there is anything to restore: a lazy module has not made its buffers yet, and fake ones hold nothing."""
    return not buffer.is_meta and not is_lazy(buffer) and not isinstance(buffer, FakeTensor)


@contextmanager
def own_metrics() -> Iterator[None]:
    """Compile inside another compilation, of a forward or of a backward: torch lets a metric be set once in each."""
    from torch._dynamo import utils
    from torch._dynamo.metrics_context import MetricsContext

    local, outer = utils._metrics_context_tls, utils.get_metrics_context()
    local.metrics_context = MetricsContext(on_exit=lambda *_: None)
    try:
        with local.metrics_context:
            yield
    finally:
        local.metrics_context = outer
