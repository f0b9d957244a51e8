"""Run a rewritten stretch once against its original nodes, on random leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ce_fx.lower.extract import copy_of
from ce_fx.sizes import hint


def random_like(fake: Tensor, generator: torch.Generator, positive: bool = False, weight: bool = True) -> Tensor:
    """A real tensor with the shape, strides, dtype and device of a fake one, filled from a normal distribution.

    Symbolic sizes are taken by their hint. The global random state is not touched.

    Args:
        fake: what to resemble.
        generator: where numbers are from.
        positive: take absolute values, for variances.
        weight: of variance one over the elements in a row, as a weight that is contracted with data; else of one.
    """
    shape = [hint(s) for s in fake.shape]
    strides = [hint(s) for s in fake.stride()]
    whole = shape
    shape = [1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True)]  # expanded: one element
    real = torch.empty_strided(shape, strides, dtype=fake.dtype, device=fake.device)
    scale = max(1, prod(shape[1:])) ** -0.5 if weight and len(shape) > 1 else 1.0
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * scale
    with torch.no_grad():
        real.copy_((values.abs() if positive else values).to(fake.dtype))
    return real if shape == whole else real.expand(whole)


def mismatch(
    written: Callable[..., Tensor],
    rewritten: Callable[..., Tensor],
    leaves: Sequence[Tensor],
    length: int,
    positive: Collection[int] = (),
) -> str | None:
    """Compare two callables on the same random leaves.

    Both are run in double precision where the device has it, so that rounding cannot hide a difference: results must
    agree to `1e-9 * sqrt(length)` of the largest value. Nodes that name a dtype (`.float()`) cannot be run so; then
    the leaves keep their own, and the results must agree to 32 roundings times `sqrt(length)`.

    Args:
        written: the original nodes.
        rewritten: what is to replace them.
        leaves: fake (or real) tensors to take shapes, dtypes and devices from.
        length: how many multiply-adds an output element takes, for the rounding to expect.
        positive: numbers of the leaves that are positive.

    Returns:
        None if they agree, else a sentence with both numbers.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    reals = [random_like(leaf, generator, n in positive) for n, leaf in enumerate(leaves)]
    with torch.no_grad():
        expected, got = _in_double(written, reals), _in_double(rewritten, reals)
        if expected is None or got is None or expected.dtype != got.dtype:
            expected, got = written(*reals), rewritten(*reals)
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return f"{got.dtype} {tuple(got.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    difference = float((expected - got).abs().max()) if expected.numel() else 0.0
    double = expected.dtype in (torch.float64, torch.complex128)
    allowed = (1e-9 if double else 32 * torch.finfo(expected.dtype).eps) * max(1.0, length**0.5)
    if difference <= allowed * scale or difference == 0.0:
        return None
    return f"largest difference {difference:.3g}, largest value {scale:.3g}"


def less_accurate(
    written: GraphModule,
    rewritten: GraphModule,
    leaves: Sequence[Tensor],
    positive: Collection[int] = (),
    weights: Collection[int] = (),
) -> str | None:
    """Why a stretch in half precision would be further from the truth than as written; None if it is not.

    The error is the root mean square of the difference to the same in double precision, on random leaves; that of what
    is written may be exceeded by half. In float16 no intermediate may be more than twice as large as the largest that
    is written: it might overflow.

    Args:
        written: the original nodes.
        rewritten: what is to replace them.
        leaves: fake (or real) tensors to take shapes, dtypes and devices from.
        positive: numbers of the leaves that are positive.
        weights: numbers of the leaves that keep a variance; the others have variance one.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    reals = [random_like(leaf, generator, n in positive, n in weights) for n, leaf in enumerate(leaves)]
    with torch.no_grad():
        truth = _in_double(written, reals)
        if truth is None:
            return None
        ours, theirs = (_rms(_double(run(*reals)) - truth) for run in (rewritten, written))
        name = str(leaves[0].dtype if leaves[0].dtype.itemsize == 2 else written(*reals).dtype).removeprefix("torch.")
        if ours > _NO_WORSE * theirs:
            return f"less accurate than as written: an error of {ours:.2g} instead of {theirs:.2g} in {name}"
        if name != "float16":
            return None
        high, usual = (_peak(_with_double_constants(run), reals) for run in (rewritten, written))
    if high > _NO_LARGER * usual:
        return f"an intermediate would be {high / usual:.1f} times as large as any that is written, in float16"
    return None


_NO_WORSE = 1.5
_NO_LARGER = 2.0


def _rms(difference: Tensor) -> float:
    return float(difference.abs().square().mean().sqrt())


def _peak(module: GraphModule, leaves: Sequence[Tensor]) -> float:
    """The largest value of any node, in double precision."""
    peaks = [0.0]

    class Peaks(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and n.op != "placeholder" and result.numel():
                peaks.append(float(result.abs().max()))
            return result

    Peaks(module).run(*map(_double, leaves))
    return max(peaks)


def _in_double(run: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Tensor | None:
    """A result in double precision; None where the nodes ask for another dtype."""
    if isinstance(run, GraphModule):
        run = _with_double_constants(run)
    forward = getattr(run, "forward", run)  # a GraphModule prints what it raises
    try:
        result: Tensor = forward(*map(_double, leaves))
        return result
    except (RuntimeError, TypeError):  # operands of two dtypes
        return None


def _with_double_constants(module: GraphModule) -> GraphModule:
    """The module with the constants that it makes (`torch.eye(3, dtype=..)`), and its casts, in double precision."""
    copy = copy_of(module)
    for node in copy.graph.nodes:
        if not node.all_input_nodes and node.kwargs.get("dtype") in _WIDER:
            node.kwargs = {**node.kwargs, "dtype": _WIDER[node.kwargs["dtype"]]}
        elif (node.op, node.target, len(node.args)) == ("call_method", "to", 2) and node.args[1] in _WIDER:
            node.args = (node.args[0], _WIDER[node.args[1]])
    copy.recompile()
    return copy


_WIDER: dict[Any, torch.dtype] = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}


def _double(tensor: Tensor) -> Tensor:
    if tensor.device.type == "mps":
        return tensor
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
