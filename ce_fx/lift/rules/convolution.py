"""Convolutions: conv1d/2d/3d with groups, stride, dilation, padding in numbers and names, and transposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ce_fx.algebra import Expression, Index, Tap, Window
from ce_fx.lift.arguments import each
from ce_fx.lift.products import Builder, Refused, add_bias, holders, lone_index, slid
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts
from ce_fx.sizes import hint

aten = torch.ops.aten


@dataclass(frozen=True)
class _Geometry:
    """Per spatial axis: stride, dilation, left padding, output size (an int or symbolic); and the number of groups."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]
    out: tuple[Any, ...]
    groups: int
    transposed: bool = False


@lifts(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def conv(node: Node, operands: Operands) -> Expression | Refusal:
    """`y[b,t,o] = sum_{s,k} x[b,s,stride*o + dilation*k - pad] * w[t,s,k]`, by group."""
    x, weight, bias, stride, padding, dilation, groups = _arguments(node, (None, 1, 0, 1, 1))
    n = fake_of(weight).ndim - 2
    geometry = _Geometry(each(stride, n), each(dilation, n), each(padding, n), _spatial(node, n), groups)
    return _convolve(x, weight, bias, geometry, operands)


@lifts(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def conv_named_padding(node: Node, operands: Operands) -> Expression | Refusal:
    """As `conv`, with padding "valid" (none) or "same" (K - 1 in all, the smaller half on the left)."""
    x, weight, bias, stride, padding, dilation, groups = _arguments(node, (None, 1, "valid", 1, 1))
    n = fake_of(weight).ndim - 2
    steps = each(dilation, n)
    reach = [d * (hint(k) - 1) for d, k in zip(steps, fake_of(weight).shape[2:], strict=True)]
    pad = tuple(r // 2 if padding == "same" else 0 for r in reach)
    return _convolve(x, weight, bias, _Geometry(each(stride, n), steps, pad, _spatial(node, n), groups), operands)


@lifts(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(node: Node, operands: Operands) -> Expression | Refusal:
    """`y[b,t,o] = sum_{s,k} x[b,s,i] * w[s,t,k]` where `o = stride*i + dilation*k - pad`."""
    defaults = (None, 1, 0, 0, 1, 1)
    x, weight, bias, stride, padding, _output_padding, groups, dilation = _arguments(node, defaults)
    n = fake_of(weight).ndim - 2
    sizes = each(stride, n), each(dilation, n), each(padding, n), _spatial(node, n)
    return _convolve(x, weight, bias, _Geometry(*sizes, groups, transposed=True), operands)


@lifts(aten.convolution.default)
def convolution(node: Node, operands: Operands) -> Expression | Refusal:
    """As `conv`, or with its flag as `conv_transpose`: the op that torch's decompositions write them all as."""
    x, weight, bias, stride, padding, dilation, transposed, _output_padding, groups = _arguments(node, ())
    n = fake_of(weight).ndim - 2
    sizes = each(stride, n), each(dilation, n), each(padding, n), _spatial(node, n)
    return _convolve(x, weight, bias, _Geometry(*sizes, groups, transposed=bool(transposed)), operands)


def _convolve(
    x: Node, weight: Node, bias: Node | None, geometry: _Geometry, operands: Operands
) -> Expression | Refusal:
    if not all(isinstance(n, int) for n in (*geometry.stride, *geometry.dilation, *geometry.pad)):
        return Refusal("a convolution whose stride, padding or dilation is not a number in the graph")
    batch = fake_of(x).ndim - 1 - len(geometry.stride)
    try:
        product = _product(operands.tensor(x), operands.tensor(weight), batch, geometry, operands)
    except Refused as refused:
        return Refusal(str(refused))
    return product if bias is None else add_bias(product, batch, operands.tensor(bias), operands.fresh)


def _product(x: Expression, weight: Expression, batch: int, geometry: _Geometry, operands: Operands) -> Expression:
    """X [B?, g*S, ...] and weight [g*T, S, ...] (transposed: [g*S, T, ...]) to the product [B?, g*T, ...].

    After the group axes are split off, x is [B?, g, S, ...] and the weight [g, T, S, ...].
    """
    g = geometry.groups
    builder = Builder((x, weight), operands.fresh)
    channels, rows = _size(builder, 0, batch), _size(builder, 1, 0)
    builder.split(0, batch, (g, channels // g))
    builder.split(1, 0, (g, rows // g))
    ins, outs = (1, 2) if geometry.transposed else (2, 1)
    builder.join((0, batch), (1, 0))
    builder.join((0, batch + 1), (1, ins))
    spatial = [
        _slide(builder, (0, batch + 2 + place), (1, 3 + place), geometry, place, operands)
        for place in range(len(geometry.stride))
    ]
    leading = tuple(builder.axis(0, dim) for dim in range(batch))
    return builder.product((*leading, builder.axis(1, 0) + builder.axis(1, outs), *spatial))


def _slide(
    builder: Builder, feature: tuple[int, int], kernel: tuple[int, int], geometry: _Geometry, n: int, operands: Operands
) -> tuple[Index, ...]:
    """Put the window of one spatial axis into the terms of the features; the axis of its positions.

    A kernel that is one wide and only copies needs no window.
    """
    taps_size, features_size = _size(builder, *kernel), _size(builder, *feature)
    stride, pad, out = geometry.stride[n], geometry.pad[n], hint(geometry.out[n])
    if taps_size == 1 and stride == 1 and pad == 0 and (out == features_size or not _static(builder, feature)):
        return builder.axis(*feature)
    index = lone_index(builder, *feature, "h")
    tap = lone_index(builder, *kernel, "k")
    if tap.symbol or (geometry.transposed and index.symbol):
        what = "a transposed convolution slides over" if index.symbol else "a kernel has"
        raise Refused(f"{what} the symbolic size {index.symbol or tap.symbol}")
    if any(w.out == tap for term in builder.expressions[1].terms for w in term.windows):
        raise Refused("the kernel is itself the result of a convolution")
    if any(holders(term, tap) != 1 for term in builder.expressions[1].terms):
        raise Refused("several factors of a kernel share an axis of its positions, or none has it")
    positions = operands.sized(index.name, geometry.out[n])
    taps = (Tap(tap, geometry.dilation[n]),)
    window = Window(index, positions, taps, stride, pad, transposed=geometry.transposed)
    expression = builder.expressions[0]
    terms = [slid(term, window) for term in expression.terms]
    if None in terms and not _reads_inside(window):
        raise Refused("a constant before a padded convolution: the padding is zero and not that constant")
    dim = feature[1]
    axes = (*expression.axes[:dim], (positions,), *expression.axes[dim + 1 :])
    # What is the same at every position stays as it is, and the kernel is summed.
    same = (old if new is None else new for old, new in zip(expression.terms, terms, strict=True))
    builder.expressions[0] = Expression(axes, tuple(same))
    return (positions,)


def _reads_inside(window: Window) -> bool:
    """Whether no output reads padding, so that a constant stays one."""
    last = window.stride * (window.out.size - 1) + window.reach - window.pad
    return window.circular or (not window.transposed and window.pad <= 0 and last < window.features.size)


def _size(builder: Builder, operand: int, dim: int) -> int:
    size = 1
    for index in builder.axis(operand, dim):
        size *= index.size
    return size


def _static(builder: Builder, place: tuple[int, int]) -> bool:
    return not any(index.symbol for index in builder.axis(*place))


def _arguments(node: Node, defaults: Sequence[Any]) -> tuple[Any, ...]:
    """x, weight and the optional arguments of a convolution node."""
    given = node.args[2:]
    return (*node.args[:2], *given, *defaults[len(given) :])


def _spatial(node: Node, n: int) -> tuple[Any, ...]:
    return tuple(fake_of(node).shape[-n:])
