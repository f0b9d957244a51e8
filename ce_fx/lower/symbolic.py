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
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true

from ce_fx.lower.extract import fake_value
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


def obstacle(module: GraphModule, leaves: Sequence[Tensor], output: Tensor) -> str | None:
    """Why a module does not hold for all sizes of its leaves; None if it does.

    Args:
        module: what was emitted, in torch functions.
        leaves: fake values of its inputs, of symbolic sizes.
        output: fake value of the result as written.
    """
    mode = next(leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor))
    shape_env = mode.shape_env or ShapeEnv()
    values: dict[Node, Any] = dict(zip(module.graph.find_nodes(op="placeholder"), leaves, strict=True))
    result = output
    try:
        with shape_env.error_on_new_guards(), _silent():
            for node in module.graph.nodes:
                if node.op in ("call_function", "call_method"):
                    values[node] = fake_value(node, values, mode)
                elif node.op == "output":
                    result = values[node.args[0]]
    except Exception as error:  # of torch's shape functions, whatever they are
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return f"the plan would hold for some sizes only ({first})"
    pairs = zip((*result.shape, *result.stride()), (*output.shape, *output.stride()), strict=True)
    if result.ndim == output.ndim and all(statically_known_true(a == b) for a, b in pairs):
        return None
    return f"the plan would give {_layout(result)}, not {_layout(output)}"


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
