"""Stretches over symbolic sizes: planned at the hints, and emitted so that they hold for any size.

What is emitted reads symbolic sizes from its tensors, and where a number stands in the graph instead it is one that
does not depend on them (see `Extent` and `Dim` for how). That is checked here by the shapes: run on symbolic sizes,
it must give the shape and the strides that were written, without a new assumption about any size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true

from ce_fx.capture.reading import Reading, read
from ce_fx.lower.value import LoweringError
from ce_fx.sizes import hint, size_or_symbol


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
        return tuple(
            torch.empty_strided(
                [hint(size) for size in tensor.shape],
                [hint(stride) for stride in tensor.stride()],
                dtype=tensor.dtype,
                device=tensor.device,
                requires_grad=tensor.requires_grad,
            )
            for tensor in tensors
        )


def values_of(tensors: Sequence[Tensor]) -> dict[Any, Any]:
    """The hints, sympy numbers, of all symbols in the shapes and strides of some tensors."""
    every: list[Any] = [size for tensor in tensors for size in (*tensor.shape, *tensor.stride())]
    sizes = [size for size in every if not isinstance(size, int)]
    values = sizes[0].node.shape_env.backed_var_to_val
    return {symbol: values[symbol] for size in sizes for symbol in size.node.expr.free_symbols}


def read_for_any_size(module: GraphModule, leaves: Sequence[Tensor], output: Tensor) -> Reading:
    """Read what was emitted on symbolic sizes.

    Args:
        module: in torch functions.
        leaves: fake values of its inputs, of symbolic sizes.
        output: fake value of the result as written.

    Raises:
        LoweringError: it would hold for some sizes only, or give another shape or strides than what is written.
    """
    mode = next(leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor))
    try:
        with (mode.shape_env or ShapeEnv()).error_on_new_guards(), _silent():
            reading = read(module, leaves)
    except RuntimeError as error:  # a guard that the trace itself asks for, between two ops
        raise LoweringError(f"the plan would hold for some sizes only ({error})") from error
    if reading.failures:
        raise LoweringError(f"the plan would hold for some sizes only ({next(iter(reading.failures.values()))})")
    (last,) = module.graph.output_node().all_input_nodes
    result = reading.fakes[last]
    pairs = zip((*result.shape, *result.stride()), (*output.shape, *output.stride()), strict=True)
    if result.ndim != output.ndim or not all(_equal(a, b) for a, b in pairs):
        raise LoweringError(f"the plan would give {_layout(result)}, not {_layout(output)}")
    return reading


def _equal(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal: torch does not simplify the quotient of a product."""
    return size_or_symbol(a) == size_or_symbol(b) or statically_known_true(a == b)


@contextmanager
def _silent() -> Iterator[None]:
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


def _layout(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} with strides {tuple(tensor.stride())}"
