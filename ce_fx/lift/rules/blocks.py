"""Block structure: slices, concatenations, zero padding. See `ce_fx.lift.blocks`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ce_fx.algebra import Expression
from ce_fx.lift.arguments import arguments
from ce_fx.lift.blocks import mapped, written_over
from ce_fx.lift.products import add, reshape
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import SPLITS, Operands, fake_of, lifts, sizes

aten = torch.ops.aten


@lifts(aten.slice.Tensor, aten.narrow.default)
def part(node: Node, operands: Operands) -> Expression | Refusal:
    """Positions `start, start + step, ..` of one axis."""
    x = node.args[0]
    given: list[Any] = [*node.args[1:]]
    dim, start, step = given[0] if given else 0, given[1] if len(given) > 1 else 0, 1
    if node.target is aten.slice.Tensor and len(given) > 3:
        step = given[3]
    source = fake_of(x)
    dim %= source.ndim
    size, length = source.shape[dim], fake_of(node).shape[dim]
    if length == size:
        return operands.tensor(x)
    if not all(isinstance(number, int) for number in (size, length, start or 0, step)):
        return Refusal("a slice of a symbolic size")
    start = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    return mapped(operands.tensor(x), dim, length, step, -start, operands)


@lifts(aten.slice_scatter.default)
def slice_scatter(node: Node, operands: Operands) -> Expression | Refusal:
    """A tensor with another one in place of positions `start, .., stop - 1` of one axis."""
    x, source = _plain(node.args[:2])
    given = arguments(node)
    dim, start, stop, step = given["dim"], given["start"], given["end"], given["step"]
    dim %= fake_of(x).ndim
    size = fake_of(x).shape[dim]
    if step != 1 or not _all_int([size, start or 0, size if stop is None else stop]):
        return Refusal("a slice with steps or of a symbolic size is written over")
    first, last, _ = slice(start, stop).indices(size)
    below = operands.tensor(x)  # also where nothing of it is left: the node reads it
    if last - first == size:
        return operands.tensor(source)
    return written_over(below, dim, first, operands.tensor(source), last - first, operands)


@lifts(aten.select.int)
def select(node: Node, operands: Operands) -> Expression | Refusal:
    """One position of an axis, which goes."""
    x, dim, position = _plain(node.args)
    source = fake_of(x)
    dim %= source.ndim
    size = source.shape[dim]
    if not isinstance(position, int) or not isinstance(size, int):
        return Refusal("a position of a symbolic size")
    result = mapped(operands.tensor(x), dim, 1, 1, -(position % size), operands)
    return result if isinstance(result, Refusal) else reshape(result, sizes(fake_of(node)), operands.fresh)


SPLITS.update(
    {
        aten.split.Tensor,
        aten.split.sizes,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.tensor_split.sections,
        aten.tensor_split.indices,
        aten.unbind.int,
    }
)


@lifts(operator.getitem)
def part_of_split(node: Node, operands: Operands) -> Expression | Refusal:
    """One part of a split; of an unbind, one position of an axis that goes."""
    split, number = _plain(node.args)
    x, *more = _plain(split.args)
    unbound = split.target is aten.unbind.int
    dim = more[0 if unbound else 1] if len(more) > (0 if unbound else 1) else split.kwargs.get("dim", 0)
    if not isinstance(number, int) or not isinstance(dim, int):
        return Refusal("a part of a split that is not named by a number")
    dim %= fake_of(x).ndim
    lengths = [1 if unbound else part.shape[dim] for part in split.meta["val"]]
    if not _all_int([*lengths, fake_of(x).shape[dim]]):
        return Refusal("a split of a symbolic size")
    number %= len(lengths)
    result = mapped(operands.again(x), dim, lengths[number], 1, -sum(lengths[:number]), operands)
    if unbound and isinstance(result, Expression):
        return reshape(result, sizes(fake_of(node)), operands.fresh)
    return result


@lifts(aten.cat.default, aten.concat.default, aten.stack.default)
def concatenation(node: Node, operands: Operands) -> Expression | Refusal:
    """The sum of all tensors, each at its place among zeros."""
    tensors: Any = node.args[0]
    stacked = node.target is aten.stack.default
    ndim = fake_of(node).ndim
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % ndim  # type: ignore[arg-type]
    lengths = [1 if stacked else fake_of(tensor).shape[dim] for tensor in tensors]
    if any(fake_of(tensor).ndim != ndim - stacked for tensor in tensors) or not _all_int(lengths):
        return Refusal("a concatenation of symbolic sizes or with an empty tensor")
    total: Expression | None = None
    for n, tensor in enumerate(tensors):
        one = operands.tensor(tensor)
        if stacked:
            one = Expression((*one.axes[:dim], (), *one.axes[dim:]), one.terms)
        placed = mapped(one, dim, sum(lengths), 1, sum(lengths[:n]), operands)
        if isinstance(placed, Expression) and total is not None:
            placed = add(total, placed, operands.fresh)
        if isinstance(placed, Refusal):
            return placed
        total = placed
    assert total is not None
    return total


@lifts(aten.pad.default, aten.constant_pad_nd.default)
def pad(node: Node, operands: Operands) -> Expression | Refusal:
    """Zeros on both sides of the last axes; negative numbers crop."""
    x, pads, *more = _plain(node.args)
    mode = more.pop(0) if more and node.target is aten.pad.default else "constant"
    value = more[0] if more else node.kwargs.get("value")
    if mode != "constant" or (value is not None and value != 0):
        return Refusal("padding with something else than zeros")
    result = operands.tensor(x)
    ndim = fake_of(x).ndim
    for n in range(0, len(pads), 2):
        dim = ndim - 1 - n // 2
        size = fake_of(node).shape[dim]
        if pads[n] == 0 and pads[n + 1] == 0:
            continue
        symbolic = not _all_int([size, fake_of(x).shape[dim]])
        if not _all_int(pads[n : n + 2]) or (symbolic and min(pads[n : n + 2]) < 0):
            return Refusal("padding by a symbolic size, or a crop of one")
        padded = mapped(result, dim, size, 1, pads[n], operands)
        if isinstance(padded, Refusal):
            return padded
        result = padded
    return result


def _plain(args: Sequence[Any]) -> list[Any]:
    """The arguments of a node, whose types its schema vouches for."""
    return list(args)


def _all_int(numbers: Sequence[Any]) -> bool:
    return all(isinstance(number, int) for number in numbers)
