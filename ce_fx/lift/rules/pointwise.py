"""Multiplications by numbers and by tensors, and what multiplies by one in eval."""

from __future__ import annotations

from dataclasses import replace
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
        if not all(isinstance(size, int) for size in fake_of(y).shape):
            return Refusal("division by a tensor of symbolic size")
        inverse = Derived("reciprocal", (y,))
        if operands.inside(y):
            divisor = _lone_leaf(operands.tensor(y), operands)
            if not isinstance(divisor, Derived) or divisor.kind != "sqrt":
                return Refusal("division by a tensor that is computed within the region")
            inverse = replace(divisor, kind="rsqrt")
        return elementwise(operands.tensor(x), operands.derived(inverse, fake_of(y).shape), operands.fresh)
    if not isinstance(y, (int, float, complex)) or y == 0:
        return Refusal("division by zero, or by what is no number in the graph")
    return _scaled(node, x, 1 / y, operands)


@lifts(aten.sqrt.default, aten.rsqrt.default)
def root(node: Node, operands: Operands) -> Expression | Refusal:
    """The square root of a tensor that is not computed here, or of one and a number, and its reciprocal."""
    x = operands.tensor(node.args[0])
    shape = fake_of(node).shape
    if not all(isinstance(size, int) for size in shape):
        return Refusal("the root of a tensor of symbolic size")
    numbers = [term.coefficient for term in x.terms if not term.factors]
    source = _lone_leaf(replace(x, terms=tuple(term for term in x.terms if term.factors)), operands)
    if not isinstance(source, Node) or len(numbers) > 1:
        return Refusal("the root of what is computed within the region")
    kind = "sqrt" if node.target is aten.sqrt.default else "rsqrt"
    return operands.derived(Derived(kind, (source,), tuple(numbers) or (0.0,)), shape)


@lifts(aten.neg.default, aten.negative.default, aten.neg_.default)
def neg(node: Node, operands: Operands) -> Expression | Refusal:
    """-x is x with the opposite coefficient."""
    return scale(operands.tensor(node.args[0]), -1)


@lifts(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def dropout(node: Node, operands: Operands) -> Expression | Refusal:
    """The identity when not training, or with p = 0."""
    x, p, train = node.args[:3]
    return Refusal("active dropout") if train and p != 0 else operands.tensor(x)


def _lone_leaf(expression: Expression, operands: Operands) -> Node | Derived | None:
    """The leaf that an expression is, axis by axis."""
    if len(expression.terms) != 1:
        return None
    term = expression.terms[0]
    alone = len(term.factors) == 1 and not term.windows and term.coefficient == 1
    return operands.key(term.factors[0].leaf) if alone and term.factors[0].axes == expression.axes else None


def _scaled(node: Node, x: Any, number: Any, operands: Operands) -> Expression | Refusal:
    source, target = fake_of(x), fake_of(node)
    if source.dtype != target.dtype:
        return Refusal(f"a number promotes {source.dtype} to {target.dtype}")
    if isinstance(number, float) and not abs(number) < float("inf"):
        return Refusal("scaled by a number that is not finite")
    return scale(operands.tensor(x), number)
