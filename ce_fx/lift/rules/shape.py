"""Reshapes, permutations and the ops that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from ce_fx.algebra import Expression
from ce_fx.lift.products import reshape as reshape_expression
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts, sizes

aten = torch.ops.aten


@lifts(
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.view_as.default,
    aten.reshape_as.default,
)
def reshape(node: Node, operands: Operands) -> Expression | Refusal:
    """The same elements, row-major, under the shape of the result."""
    return reshape_expression(operands.tensor(node.args[0]), sizes(fake_of(node)), operands.fresh)


@lifts(aten.permute.default)
def permute(node: Node, operands: Operands) -> Expression | Refusal:
    """Axis n of the result is axis `dims[n]` of x."""
    dims = node.args[1]
    assert isinstance(dims, (list, tuple))
    return _permuted(operands.tensor(node.args[0]), dims)


@lifts(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(node: Node, operands: Operands) -> Expression | Refusal:
    """Two axes change places."""
    x = operands.tensor(node.args[0])
    order: list[Any] = list(range(len(x.axes)))
    if order:
        a, b = node.args[1] % len(order), node.args[2] % len(order)  # type: ignore[operator]
        order[a], order[b] = b, a
    return _permuted(x, order)


@lifts(aten.t.default, aten.numpy_T.default, aten.mT.default, aten.adjoint.default)
def reversed_axes(node: Node, operands: Operands) -> Expression | Refusal:
    """The last two axes (all axes, for `t` and `T`) in opposite order; real tensors only for `adjoint`."""
    x = operands.tensor(node.args[0])
    if node.target is aten.adjoint.default and fake_of(node.args[0]).is_complex():
        return Refusal("the adjoint of a complex tensor is not linear")
    keep = 0 if node.target in (aten.t.default, aten.numpy_T.default) else len(x.axes) - 2
    return _permuted(x, [*range(keep), *reversed(range(keep, len(x.axes)))])


@lifts(aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist)
def movedim(node: Node, operands: Operands) -> Expression | Refusal:
    """Some axes move to given places, the others keep their order."""
    x = operands.tensor(node.args[0])
    n = len(x.axes)
    source, target = (
        [dim % n for dim in (arg if isinstance(arg, (list, tuple)) else (arg,))]  # type: ignore[operator]
        for arg in node.args[1:3]
    )
    rest = iter(dim for dim in range(n) if dim not in source)
    places = dict(zip(target, source, strict=True))
    return _permuted(x, [places[dim] if dim in places else next(rest) for dim in range(n)])


@lifts(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
def expand(node: Node, operands: Operands) -> Expression | Refusal:
    """Axes of size 1 repeat: a new index that no factor has."""
    x = operands.tensor(node.args[0])
    shape = sizes(fake_of(node))
    old = ((),) * (len(shape) - len(x.axes)) + x.axes
    axes = []
    for size, axis in zip(shape, old, strict=True):
        if axis and not (len(axis) == 1 and axis[0].size == 1 and not axis[0].symbol):
            axes.append(axis)
        elif isinstance(size, str):
            return Refusal(f"expanded to the symbolic size {size}")
        else:
            # The axis may be the one position of a convolution, whose index must stay.
            axes.append((*axis, operands.fresh("i", size)) if size != 1 else axis)
    return replace(x, axes=tuple(axes))


@lifts(aten.contiguous.default, aten.clone.default, aten.alias.default, aten.lift_fresh.default)
def same(node: Node, operands: Operands) -> Expression | Refusal:
    """The same values; layout is not part of the algebra."""
    return operands.tensor(node.args[0])


@lifts(aten.detach.default)
def detach(node: Node, operands: Operands) -> Expression | Refusal:
    """The same values; exact only where no gradient would have flowed."""
    if node.args[0].meta.get("needs_grad"):
        return Refusal("detach cuts a gradient")
    return operands.tensor(node.args[0])


@lifts(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default)
def to(node: Node, operands: Operands) -> Expression | Refusal:
    """The same values, if dtype, device and layout stay."""
    source, target = fake_of(node.args[0]), fake_of(node)
    same_kind = (source.dtype, source.device, source.layout) == (target.dtype, target.device, target.layout)
    return operands.tensor(node.args[0]) if same_kind else Refusal(f"cast from {source.dtype} to {target.dtype}")


def _permuted(x: Expression, dims: Sequence[Any]) -> Expression:
    return replace(x, axes=tuple(x.axes[dim] for dim in dims))
