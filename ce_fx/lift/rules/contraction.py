"""Contractions: matmul and its family, linear, einsum, tensordot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ce_fx.algebra import Expression
from ce_fx.lift.products import add_bias, contract
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts

aten = torch.ops.aten


@lifts(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.matmul.default)
def matmul(node: Node, operands: Operands) -> Expression | Refusal:
    """`[..., i, k] @ [..., k, j]`: a vector has no i, or no j; leading axes broadcast."""
    x, y = node.args[:2]
    a, b = fake_of(x).ndim, fake_of(y).ndim
    lead = max(a, b) - 2
    left = [*range(lead + 2 - a, lead), "i", "k"] if a > 1 else ["k"]
    right = [*range(lead + 2 - b, lead), "k", "j"] if b > 1 else ["k"]
    output = [*range(lead), *("i" for _ in range(a > 1)), *("j" for _ in range(b > 1))]
    return contract((operands.tensor(x), operands.tensor(y)), (left, right), output, operands.fresh)


@lifts(aten.linear.default)
def linear(node: Node, operands: Operands) -> Expression | Refusal:
    """`y[..., j] = sum_k x[..., k] * w[j, k] + bias[j]`; a 1-d weight has no j."""
    x, weight, *bias = node.args
    lead = list(range(fake_of(x).ndim - 1))
    rows = ["j"] if fake_of(weight).ndim == 2 else []
    both = operands.tensor(x), operands.tensor(weight)
    product = contract(both, ([*lead, "k"], [*rows, "k"]), [*lead, *rows], operands.fresh)
    if isinstance(product, Refusal) or not bias or bias[0] is None:
        return product
    if fake_of(bias[0]).ndim != 1:
        return Refusal("the bias of a linear layer is not a vector")
    return add_bias(product, len(lead), operands.tensor(bias[0]), operands.fresh)


@lifts(aten.einsum.default)
def einsum(node: Node, operands: Operands) -> Expression | Refusal:
    """einsum, of any number of operands, with ellipsis, diagonals, sums and implicit output."""
    equation, tensors = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(tensors, (list, tuple))
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = [re.findall(r"\.\.\.|.", text) for text in inputs.split(",")]
    counts = [len(t) - ("..." in t) for t in terms]
    dots = [fake_of(t).ndim - n if "..." in term else 0 for t, term, n in zip(tensors, terms, counts, strict=True)]
    labels = [_with_dots(term, n) for term, n in zip(terms, dots, strict=True)]
    output = _with_dots(re.findall(r"\.\.\.|.", out), max(dots)) if arrow else _implicit(terms, max(dots))
    return contract([operands.tensor(t) for t in tensors], labels, output, operands.fresh)


def _with_dots(term: Sequence[str], n: int) -> list[Any]:
    """Letters, with the ellipsis as integers counted down from the right."""
    return [x for letter in term for x in (range(n, 0, -1) if letter == "..." else [letter])]


def _implicit(terms: Sequence[Sequence[str]], n: int) -> list[Any]:
    letters = [x for term in terms for x in term if x != "..."]
    return [*range(n, 0, -1), *sorted(x for x in set(letters) if letters.count(x) == 1)]


@lifts(aten.tensordot.default)
def tensordot(node: Node, operands: Operands) -> Expression | Refusal:
    """Sum over pairs of axes; the others follow, the left's first."""
    x, y, left_dims, right_dims = node.args[:4]
    assert isinstance(left_dims, (list, tuple)) and isinstance(right_dims, (list, tuple))
    left: list[Any] = [("x", dim) for dim in range(fake_of(x).ndim)]
    right: list[Any] = [("y", dim) for dim in range(fake_of(y).ndim)]
    output = [
        *(label for dim, label in enumerate(left) if dim not in _positive(left_dims, len(left))),
        *(label for dim, label in enumerate(right) if dim not in _positive(right_dims, len(right))),
    ]
    for a, b in zip(_positive(left_dims, len(left)), _positive(right_dims, len(right)), strict=True):
        right[b] = left[a]
    return contract((operands.tensor(x), operands.tensor(y)), (left, right), output, operands.fresh)


def _positive(dims: Sequence[Any], ndim: int) -> list[int]:
    return [int(dim) % ndim for dim in dims]
