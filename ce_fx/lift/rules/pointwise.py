"""Multiplications by numbers and by tensors, and what multiplies by one in eval."""

from __future__ import annotations

from numbers import Number
from typing import Any

import torch
from torch.fx import Node

from ce_fx.algebra import Expression, scale
from ce_fx.algebra.derived import Derived
from ce_fx.lift.products import elementwise
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts

aten = torch.ops.aten


@lifts(
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.multiply.Tensor,
    aten.multiply.Scalar,
    aten.mul_.Tensor,
    aten.mul_.Scalar,
)
def mul(node: Node, operands: Operands) -> Expression | Refusal:
    """A number scales; a tensor multiplies position by position, its axes of size 1 broadcast."""
    x, y = node.args[:2]
    if isinstance(y, Number) or isinstance(x, Number):
        number, tensor = (y, x) if isinstance(y, Number) else (x, y)
        return _scaled(node, tensor, number, operands)
    if fake_of(x).ndim == fake_of(y).ndim == 0:
        return Refusal("a product of two scalars")
    return elementwise(operands.tensor(x), operands.tensor(y), operands.fresh)


@lifts(
    aten.div.Tensor,
    aten.div.Scalar,
    aten.true_divide.Tensor,
    aten.true_divide.Scalar,
    aten.div_.Tensor,
    aten.div_.Scalar,
)
def div(node: Node, operands: Operands) -> Expression | Refusal:
    """By a number other than 0; by a tensor that is not computed here it is a product with its reciprocal."""
    x, y = node.args[:2]
    if isinstance(x, Node) and isinstance(y, Node):
        if operands.inside(y):
            return Refusal("division by a tensor that is computed within the region")
        if not all(isinstance(size, int) for size in fake_of(y).shape):
            return Refusal("division by a tensor of symbolic size")
        inverse = operands.derived(Derived("reciprocal", (y,)), fake_of(y).shape)
        return elementwise(operands.tensor(x), inverse, operands.fresh)
    if not isinstance(y, (int, float, complex)) or y == 0:
        return Refusal("division by zero, or by what is no number in the graph")
    return _scaled(node, x, 1 / y, operands)


@lifts(aten.neg.default, aten.negative.default, aten.neg_.default)
def neg(node: Node, operands: Operands) -> Expression | Refusal:
    """-x is x with the opposite coefficient."""
    return scale(operands.tensor(node.args[0]), -1)


@lifts(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def dropout(node: Node, operands: Operands) -> Expression | Refusal:
    """The identity when not training, or with p = 0."""
    x, p, train = node.args[:3]
    return Refusal("active dropout") if train and p != 0 else operands.tensor(x)


def _scaled(node: Node, x: Any, number: Any, operands: Operands) -> Expression | Refusal:
    source, target = fake_of(x), fake_of(node)
    if source.dtype != target.dtype:
        return Refusal(f"a number promotes {source.dtype} to {target.dtype}")
    if isinstance(number, float) and not abs(number) < float("inf"):
        return Refusal("scaled by a number that is not finite")
    return scale(operands.tensor(x), number)
