"""Products of other shapes than a matmul: Kronecker, outer, inner and chained ones; diagonals and repeats.

Also what does nothing to a real tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from ce_fx.algebra import Axis, Expression
from ce_fx.algebra.derived import Derived
from ce_fx.lift.arguments import arguments
from ce_fx.lift.products import add_bias, contract
from ce_fx.lift.products import reshape as reshape_expression
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts, sizes
from ce_fx.lift.rules.contraction import matmul
from ce_fx.lift.rules.shape import detach

aten = torch.ops.aten

lifts(aten.linalg_matmul.default)(matmul)
lifts(aten.detach_.default)(detach)


@lifts(aten.kron.default)
def kron(node: Node, operands: Operands) -> Expression | Refusal:
    """Axis d of the result is axis d of x and axis d of y merged; axes are aligned at the last one."""
    x, y = operands.tensor(node.args[0]), operands.tensor(node.args[1])
    left = [("x", dim - len(x.axes)) for dim in range(len(x.axes))]
    right = [("y", dim - len(y.axes)) for dim in range(len(y.axes))]
    product = contract((x, y), (left, right), [*left, *right], operands.fresh)
    if isinstance(product, Refusal):
        return product
    both = dict(zip([*left, *right], product.axes, strict=True))
    places = range(-max(len(left), len(right)), 0)
    return replace(product, axes=tuple(both.get(("x", n), ()) + both.get(("y", n), ()) for n in places))


@lifts(aten.outer.default, aten.ger.default)
def outer(node: Node, operands: Operands) -> Expression | Refusal:
    """`y[i, j] = a[i] * b[j]`."""
    a, b = node.args[:2]
    return contract((operands.tensor(a), operands.tensor(b)), ("i", "j"), "ij", operands.fresh)


@lifts(aten.inner.default)
def inner(node: Node, operands: Operands) -> Expression | Refusal:
    """The sum over the last axes, if both have one; the others follow, the left's first."""
    x, y = node.args[:2]
    left: list[Any] = [("x", dim) for dim in range(fake_of(x).ndim)]
    right: list[Any] = [("y", dim) for dim in range(fake_of(y).ndim)]
    output = [*left, *right]
    if left and right:
        output = [*left[:-1], *right[:-1]]
        right[-1] = left[-1]
    return contract((operands.tensor(x), operands.tensor(y)), (left, right), output, operands.fresh)


@lifts(aten.vdot.default, aten.linalg_vecdot.default)
def vecdot(node: Node, operands: Operands) -> Expression | Refusal:
    """The sum over one axis of a product, position by position; real tensors only, a complex one is conjugated."""
    x, y = node.args[:2]
    if fake_of(x).is_complex():
        return Refusal("the conjugate of a complex tensor is not linear")
    a, b = fake_of(x).ndim, fake_of(y).ndim
    n = max(a, b)
    summed = int(arguments(node).get("dim", -1)) % n
    both = operands.tensor(x), operands.tensor(y)
    output = [dim for dim in range(n) if dim != summed]
    return contract(both, (range(n - a, n), range(n - b, n)), output, operands.fresh)


@lifts(aten.chain_matmul.default, aten.linalg_multi_dot.default)
def chain(node: Node, operands: Operands) -> Expression | Refusal:
    """A product of matrices, in a row; the first and the last may be vectors."""
    matrices = node.args[0]
    assert isinstance(matrices, (list, tuple))
    labels = [[n, n + 1] for n in range(len(matrices))]
    if fake_of(matrices[0]).ndim == 1:
        labels[0] = [1]
    if fake_of(matrices[-1]).ndim == 1:
        labels[-1] = labels[-1][:1]
    flat = [label for pair in labels for label in pair]
    output = [label for label in dict.fromkeys(flat) if flat.count(label) == 1]
    return contract([operands.tensor(matrix) for matrix in matrices], labels, output, operands.fresh)


@lifts(aten.bilinear.default)
def bilinear(node: Node, operands: Operands) -> Expression | Refusal:
    """`y[.., j] = sum_ab x[.., a] * w[j, a, b] * z[.., b] + bias[j]`."""
    x, z, weight, *bias = node.args
    lead = list(range(fake_of(x).ndim - 1))
    factors = operands.tensor(x), operands.tensor(weight), operands.tensor(z)
    product = contract(factors, ([*lead, "a"], "jab", [*lead, "b"]), [*lead, "j"], operands.fresh)
    if isinstance(product, Refusal) or not bias or bias[0] is None:
        return product
    return add_bias(product, len(lead), operands.tensor(bias[0]), operands.fresh)


@lifts(aten.diagonal.default, aten.trace.default, aten.diag.default)
def diagonal(node: Node, operands: Operands) -> Expression | Refusal:
    """The main diagonal of two axes of equal size, as the last axis; summed by `trace`; `diag` of a vector embeds."""
    given = arguments(node)
    x = fake_of(node.args[0])
    if node.target is aten.diag.default and x.ndim == 1:
        return _embedded(node, given["diagonal"], (0, 1), operands)
    if given.get("offset", 0) != 0 or given.get("diagonal", 0) != 0:
        return Refusal("a diagonal that is not the main one")
    first, second = (int(given.get(name, n)) % x.ndim for n, name in enumerate(("dim1", "dim2")))
    if str(x.shape[first]) != str(x.shape[second]):
        return Refusal("the diagonal of a matrix that is not square")
    labels: list[Any] = ["i" if dim in (first, second) else dim for dim in range(x.ndim)]
    output = [label for label in labels if label != "i"]
    kept = [] if node.target is aten.trace.default else ["i"]
    return contract((operands.tensor(node.args[0]),), (labels,), [*output, *kept], operands.fresh)


@lifts(aten.diag_embed.default)
def diag_embed(node: Node, operands: Operands) -> Expression | Refusal:
    """`y[.., i, j] = x[.., i]` where i = j, else 0: a product with the identity."""
    given = arguments(node)
    n = fake_of(node).ndim
    return _embedded(node, given["offset"], (int(given["dim1"]) % n, int(given["dim2"]) % n), operands)


@lifts(aten.repeat.default, aten.tile.default)
def repeat(node: Node, operands: Operands) -> Expression | Refusal:
    """Each axis is read so many times over: an index that no factor has, before those of the axis."""
    x, times = operands.tensor(node.args[0]), node.args[1]
    assert isinstance(times, (list, tuple))
    n = max(len(times), len(x.axes))
    return _repeated(
        ((),) * (n - len(x.axes)) + x.axes, (1,) * (n - len(times)) + tuple(times), x, operands, inside=False
    )


@lifts(aten.repeat_interleave.self_int)
def repeat_interleave(node: Node, operands: Operands) -> Expression | Refusal:
    """Each position of an axis (of all in a row) several times: an index that no factor has, after the others."""
    given = arguments(node)
    x = operands.tensor(node.args[0])
    dim = given["dim"]
    if dim is None:
        flat = reshape_expression(x, sizes(fake_of(node.args[0]).flatten()), operands.fresh)
        if isinstance(flat, Refusal):
            return flat
        x, dim = flat, 0
    times = [given["repeats"] if n == dim % len(x.axes) else 1 for n in range(len(x.axes))]
    return _repeated(x.axes, times, x, operands, inside=True)


@lifts(aten.ravel.default)
def ravel(node: Node, operands: Operands) -> Expression | Refusal:
    """All elements in a row."""
    return reshape_expression(operands.tensor(node.args[0]), sizes(fake_of(node)), operands.fresh)


@lifts(aten.lift_fresh_copy.default, aten.resolve_conj.default, aten.resolve_neg.default, aten.positive.default)
def same(node: Node, operands: Operands) -> Expression | Refusal:
    """The same values, in memory of their own perhaps."""
    return operands.tensor(node.args[0])


@lifts(aten.real.default, aten._conj.default, aten.conj_physical.default)
def real(node: Node, operands: Operands) -> Expression | Refusal:
    """A real tensor as it is."""
    if fake_of(node.args[0]).is_complex():
        return Refusal("the real part or the conjugate of a complex tensor is not linear")
    return operands.tensor(node.args[0])


@lifts(aten.mH.default, aten.matrix_H.default)
def conjugate_transpose(node: Node, operands: Operands) -> Expression | Refusal:
    """The last two axes of a real tensor in opposite order."""
    if fake_of(node.args[0]).is_complex():
        return Refusal("the adjoint of a complex tensor is not linear")
    x = operands.tensor(node.args[0])
    return replace(x, axes=(*x.axes[:-2], *reversed(x.axes[-2:])))


def _embedded(node: Node, offset: Any, dims: tuple[int, int], operands: Operands) -> Expression | Refusal:
    """The last axis of x as the main diagonal of two axes of the result."""
    x = node.args[0]
    size = fake_of(x).shape[-1]
    if offset != 0:
        return Refusal("a diagonal that is not the main one")
    if not isinstance(size, int):
        return Refusal("a diagonal matrix of a size that is not a number in the graph")
    lead: list[Any] = list(range(fake_of(x).ndim - 1))
    rest = iter(lead)
    ends = dict(zip(dims, "ij", strict=True))
    output = [ends[dim] if dim in ends else next(rest) for dim in range(len(lead) + 2)]
    identity = operands.derived(Derived("eye", (), (size,)), (size, size))
    return contract((operands.tensor(x), identity), ([*lead, "i"], "ij"), output, operands.fresh)


def _repeated(
    axes: Sequence[Axis], times: Sequence[Any], x: Expression, operands: Operands, inside: bool
) -> Expression | Refusal:
    if not all(isinstance(number, int) for number in times):
        return Refusal("repeated as often as is no number in the graph")
    new = []
    for axis, number in zip(axes, times, strict=True):
        if number != 1 and any(index.symbol for index in axis):
            return Refusal("repeated along a symbolic size")
        more = (operands.fresh("r", number),) if number != 1 else ()
        new.append(axis + more if inside else more + axis)
    return replace(x, axes=tuple(new))
