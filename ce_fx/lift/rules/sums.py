"""Sums: of tensors, of a tensor and a number, of a tensor and a product, and over axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.fx import Node

from ce_fx.algebra import Expression, Term, axis_size, scale
from ce_fx.lift.arguments import arguments, is_number
from ce_fx.lift.products import Refused, add, contract, elementwise
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts
from ce_fx.lift.rules.spatial import averaged, slid_over

aten = torch.ops.aten


@lifts(aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor, aten.add_.Scalar)
def plus(node: Node, operands: Operands) -> Expression | Refusal:
    """`x + alpha * y`, with broadcasting; either may be a number."""
    return _sum(node, node.args[0], node.args[1], 1, operands)


@lifts(aten.sub.Tensor, aten.sub.Scalar, aten.sub_.Tensor, aten.sub_.Scalar)
def minus(node: Node, operands: Operands) -> Expression | Refusal:
    """`x - alpha * y`."""
    return _sum(node, node.args[0], node.args[1], -1, operands)


@lifts(aten.rsub.Tensor, aten.rsub.Scalar)
def reversed_minus(node: Node, operands: Operands) -> Expression | Refusal:
    """`y - alpha * x`."""
    return _sum(node, node.args[1], node.args[0], -1, operands)


_PLUS = {
    aten.addmm.default: ("ik", "kj", "ij"),
    aten.baddbmm.default: ("bik", "bkj", "bij"),
    aten.addbmm.default: ("bik", "bkj", "ij"),
    aten.addmv.default: ("ik", "k", "i"),
    aten.addr.default: ("i", "j", "ij"),
}


@lifts(*_PLUS)
def plus_product(node: Node, operands: Operands) -> Expression | Refusal:
    """`beta * z + alpha * (x times y)`: of matrices, with a batch or summed over it, of vectors, or of one of each."""
    z, x, y = node.args[:3]
    left, right, output = _PLUS[node.target]
    product = contract((operands.tensor(x), operands.tensor(y)), (left, right), output, operands.fresh)
    given = arguments(node)
    return _scaled_sum(z, given["beta"], product, given["alpha"], operands)


@lifts(aten.addcmul.default)
def addcmul(node: Node, operands: Operands) -> Expression | Refusal:
    """`z + value * x * y`."""
    z, x, y = node.args[:3]
    product = elementwise(operands.tensor(x), operands.tensor(y), operands.fresh)
    return _scaled_sum(z, 1, product, arguments(node)["value"], operands)


def _scaled_sum(
    z: Any, beta: Any, product: Expression | Refusal, alpha: Any, operands: Operands
) -> Expression | Refusal:
    """`beta * z + alpha * product`; z is not read where beta is 0."""
    if isinstance(product, Refusal):
        return product
    if not is_number(beta) or not is_number(alpha):
        return Refusal("scaled by what is no number in the graph")
    product = scale(product, alpha)
    return product if beta == 0 else add(scale(operands.tensor(z), beta), product, operands.fresh)


@lifts(aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim)
def over_axes(node: Node, operands: Operands) -> Expression | Refusal:
    """Some axes are summed, or averaged: the sum by its number of elements."""
    x = node.args[0]
    source = fake_of(x)
    if fake_of(node).dtype != source.dtype:
        return Refusal(f"a sum from {source.dtype} to {fake_of(node).dtype}")
    dims, keep = _dims(node, source.ndim)
    axes = list(range(source.ndim))
    try:
        operand = _without_positions(operands.tensor(x), dims, operands)
    except Refused as refused:
        return Refusal(str(refused))
    result = contract((operand,), (axes,), [a for a in axes if a not in dims], operands.fresh)
    if isinstance(result, Refusal):
        return result
    if node.target in (aten.mean.default, aten.mean.dim):
        sizes = [source.shape[dim] for dim in dims]
        if not all(isinstance(size, int) for size in sizes):
            return Refusal("a mean over a symbolic size")
        result = scale(result, 1 / prod(sizes))
    if keep:
        rest = iter(result.axes)
        result = Expression(tuple(() if a in dims else next(rest) for a in axes), result.terms)
    return result


def _without_positions(x: Expression, dims: Sequence[int], operands: Operands) -> Expression:
    """The operand with each summed axis over which a kernel slides as the one position of its sum: a pool of all."""
    for dim in dims:
        size = axis_size(x.axes[dim])
        if slid_over(x, dim) and not any(index.symbol for index in x.axes[dim]):
            x = scale(averaged(x, dim, size, operands), size)
    return x


def _dims(node: Node, ndim: int) -> tuple[list[int], bool]:
    """The axes that a reduction is over, and whether they stay with size 1."""
    given: Any = node.args[1] if len(node.args) > 1 else None
    keep = bool(node.args[2]) if len(node.args) > 2 else False
    if given is None or (isinstance(given, Sequence) and not given):
        return list(range(ndim)), keep
    return [int(dim) % ndim for dim in given], keep


def _sum(node: Node, x: Any, y: Any, sign: int, operands: Operands) -> Expression | Refusal:
    """The first argument as it is and the second times alpha and a sign, whichever way round they are added."""
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    if not is_number(alpha):
        return Refusal("scaled by what is no number in the graph")
    parts = []
    for arg, factor in ((x, 1), (y, sign * alpha)):  # type: ignore[operator]
        if isinstance(arg, Node):
            parts.append(scale(operands.tensor(arg), factor))  # type: ignore[arg-type]
        elif not is_number(arg):
            return Refusal("a sum with what is no number in the graph")
        elif arg != 0:
            parts.append(Expression((), (Term((), (), arg * factor),)))
    return parts[0] if len(parts) == 1 else add(parts[0], parts[1], operands.fresh)
