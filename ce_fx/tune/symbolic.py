"""Tensors with symbolic sizes, and what is tried on them without a trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ce_fx.sizes import hint


def is_symbolic(tensor: Tensor) -> bool:
    """Whether a size or a stride is no number."""
    return not all(isinstance(size, int) for size in (*tensor.shape, *tensor.stride()))


def at_hints(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Fake tensors of the same dtypes, devices and need of gradients, every symbolic size by its hint.

    What is tried on them leaves no guard behind.
    """
    if not any(map(is_symbolic, tensors)):
        return tuple(tensors)
    with FakeTensorMode():
        return tuple(like(tensor, hint) for tensor in tensors)


def values_of(tensors: Sequence[Tensor]) -> dict[Any, Any]:
    """The hints, sympy numbers, of all symbols in the shapes and strides of some tensors."""
    every: list[Any] = [size for tensor in tensors for size in (*tensor.shape, *tensor.stride())]
    sizes = [size for size in every if not isinstance(size, int)]
    values = sizes[0].node.shape_env.backed_var_to_val
    return {symbol: values[symbol] for size in sizes for symbol in size.node.expr.free_symbols}


def like(tensor: Tensor, size_of: Callable[[Any], Any]) -> Tensor:
    """A new tensor of the same dtype, device and need of a gradient; its sizes and strides by a function of these."""
    return torch.empty_strided(
        list(map(size_of, tensor.shape)),
        list(map(size_of, tensor.stride())),
        dtype=tensor.dtype,
        device=tensor.device,
        requires_grad=tensor.requires_grad,
    )


@contextmanager
def silent() -> Iterator[None]:
    """Torch logs a failed guard as an error of its own; here it is an answer."""
    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", fake_tensor.__name__)]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
