"""A convolution by other means than torch's: windows copied out, kernel positions added up, or a matrix of positions.

Each turns the joined axes into ordinary indices that a matmul contracts; see `ce_fx.plan.ways` for where that pays.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from ce_fx.algebra import Index
from ce_fx.lower.convolve import contract_windows, convolution, length, renamed, slide_dims
from ce_fx.lower.multiply import at_each
from ce_fx.lower.padding import Dim, Pad, cropped_or_padded
from ce_fx.lower.value import Letter, Letters, LoweringError, Value, arranged, dense, groups_of, product_of, split
from ce_fx.plan.network import Network
from ce_fx.plan.tree import Step


def unfold(
    graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters, conv: bool = False
) -> Value:
    """The windows of the features are copied out, and their positions contracted with the kernel's.

    By a matmul, or with `conv` by a 1x1 convolution, for which torch may have the faster library.
    """
    for axis, dim in slide_dims(network, step).items():
        larger, smaller = contract_windows(graph, axis, dim, larger, smaller)
    return _at_positions(graph, step, larger, smaller, wish, conv=conv)


def grouped(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """A kernel that many images share is repeated, and those that are neighbours are convolved as groups of one."""
    shared = {*smaller.letters, *(axis.axis for axis in step.joined)}
    lead = [x for x in larger.letters if isinstance(x, Index) and x not in shared]
    images = next((letter for letter in lead if letter.symbol), lead[0])  # groups are a literal number
    channels = [letter for letter in lead if letter != images]
    smaller = split(graph, smaller)
    sizes = [product_of(graph, [larger.size(letter)]) for letter in channels]
    node = graph.call_method("expand", (smaller.node, *sizes, *(-1 for _ in smaller.dims)))
    repeated = Value(node, (*((letter,) for letter in channels), *smaller.dims), smaller.lengths)
    step = replace(step, batch=(*step.batch, *channels))
    return convolution(graph, step, larger, repeated, slide_dims(network, step))


def taps(
    graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters, conv: bool = False
) -> Value:
    """Every kernel position has columns of its own, and what they give is shifted and added up.

    By a matmul, or with `conv` by a 1x1 convolution.
    """
    dims = slide_dims(network, step)
    if any(dim.symbolic and dim.stride > 1 for dim in dims.values()):
        raise LoweringError("strided kernel positions over a symbolic size would end at its remainder")
    names = {axis: Index(f"tap.{axis}", dim.kernel) for axis, dim in dims.items()}
    for axis, name in names.items():
        smaller = renamed(smaller, axis, name)
    value = _at_positions(graph, step, larger, smaller, (), tuple(names.values()), conv)  # positions stay last
    tap_letters = tuple(names.values())
    places = tuple(x for x in larger.letters if isinstance(x, int))
    columns = _columns(smaller, step, tap_letters)
    lead = tuple(x for x in value.letters if x not in (*tap_letters, *columns, *places))
    shaped: tuple[Letters, ...] = (lead, tap_letters, columns, *((place,) for place in places))
    node = arranged(graph, value, shaped)
    pads = [
        Pad(value.size(place), dims[place].left, dims[place].right, symbolic=dims[place].symbolic)
        if place in dims
        else Pad(value.size(place))
        for place in places
    ]
    node = cropped_or_padded(graph, node, pads)
    total: Node | None = None
    for number, shifts in enumerate(product(*(range(dim.kernel) for dim in dims.values()))):
        here = graph.call_function(torch.select, (node, 1, number))
        here = _shifted(graph, here, places, dims, dict(zip(dims, shifts, strict=True)))
        total = here if total is None else graph.call_function(torch.add, (total, here))
    assert total is not None
    at = {place: n for n, place in enumerate(places, 2)}
    new: dict[Letter, int] = {axis: length(graph, total, at[axis], dim) for axis, dim in dims.items()}
    lengths = {**value.lengths, **new}
    return Value(total, (lead, columns, *((place,) for place in places)), lengths)


def band(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """The kernel becomes a matrix from positions to positions: `w[i - stride*o + left]` at row i and column o."""
    dims = slide_dims(network, step)
    if any(dim.symbolic for dim in dims.values()):
        raise LoweringError("a matrix of positions would have a symbolic size")
    for axis, dim in dims.items():
        larger = renamed(larger, axis, Index(f"band.{axis}", dim.length))
        smaller = _spread(graph, axis, dim, smaller)
    smaller = split(graph, smaller)
    reversed_ = [smaller.dims.index((axis,)) for axis in dims]
    smaller = Value(graph.call_function(torch.flip, (smaller.node, reversed_)), smaller.dims, smaller.lengths)
    bands = tuple(x for x in larger.letters if isinstance(x, Index) and x.name.startswith("band."))
    summed = (*_in_order(larger, step.contracted), *bands)
    batch = _in_order(larger, step.batch)
    rows = _others(larger, (*batch, *summed))
    columns = (*_columns(smaller, step, bands), *dims)
    lengths = {**larger.lengths, **smaller.lengths}
    if batch:
        x = arranged(graph, larger, [batch, rows, summed])
        w = arranged(graph, smaller, [batch, summed, columns])
        return Value(graph.call_function(torch.bmm, (x, w)), (batch, rows, columns), lengths)
    x = arranged(graph, larger, [rows, summed])
    w = arranged(graph, smaller, [summed, columns])
    return Value(graph.call_function(torch.mm, (x, w)), (rows, columns), lengths)


def _at_positions(
    graph: Graph, step: Step, x: Value, w: Value, wish: Letters, taps: Letters = (), conv: bool = False
) -> Value:
    """As `at_each`, or with the indices that both sides keep as a batch (as groups).

    Kernel positions that x does not have come before the columns.
    """
    shared = [letter for letter in x.letters if letter in w.letters]
    batch = tuple(letter for letter in shared if letter in step.batch)
    summed = tuple(letter for letter in shared if letter not in step.batch)
    places = tuple(letter for letter in x.letters if isinstance(letter, int))
    lead = _others(x, (*shared, *places))
    columns = (*taps, *_columns(w, step, (*taps, *summed)))
    lengths = {**w.lengths, **x.lengths}
    if conv:
        features = arranged(graph, x, [lead, batch + summed, places])
        kernel = dense(graph, arranged(graph, w, [batch + columns, summed, ()]))
        groups: dict[str, Any] = {"groups": groups_of(x, batch)} if batch else {}
        node = graph.call_function(torch.conv1d, (features, kernel), groups)
        return Value(node, (lead, batch + columns, places), lengths)
    if batch:
        left = arranged(graph, w, [batch, columns, summed])
        right = arranged(graph, x, [lead, batch, summed, places])
        return Value(graph.call_function(torch.matmul, (left, right)), (lead, batch, columns, places), lengths)
    return at_each(graph, x, w, (lead, summed, places), columns, wish)


def _shifted(graph: Graph, node: Node, places: Letters, dims: Mapping[int, Dim], shifts: Mapping[int, int]) -> Node:
    """The positions `stride*o + dilation*k` of the padded position dims, which are the last ones."""
    slices: list[Any] = [Ellipsis]
    for place in places:
        if place not in dims:
            slices.append(slice(None))
            continue
        dim = dims[place]
        start = dim.dilation * shifts[place]
        if dim.symbolic:  # counted from the end
            slices.append(slice(start, start + 1 - dim.extent or None))
            continue
        slices.append(slice(start, start + (dim.out - 1) * dim.stride + 1, dim.stride))
    return graph.call_function(operator.getitem, (node, tuple(slices)))


def _spread(graph: Graph, axis: int, dim: Dim, w: Value) -> Value:
    """A kernel as a matrix along an axis: output positions, from the last to the first, and input positions.

    The padded kernel `v[j] = w[j - stride*(out - 1) + left]`, read through windows of `length` positions: the one that
    starts at `stride*m` is the row of output position `out - 1 - m`.
    """
    w = split(graph, w)
    place = w.dims.index((axis,))
    before = dim.stride * (dim.out - 1) - dim.left
    pads = [Pad(prod(w.size(x) for x in d)) for d in w.dims]
    pads[place] = Pad(dim.kernel, before, dim.length + dim.left - dim.kernel)
    node = cropped_or_padded(graph, w.node, pads)
    node = graph.call_method("unfold", (node, place, dim.length, dim.stride))
    return Value(node, (*w.dims, (Index(f"band.{axis}", dim.length),)), {**w.lengths, axis: dim.out})


def _columns(w: Value, step: Step, others: Letters) -> Letters:
    """The letters that a kernel adds to the result, without the axes that it slides along."""
    joined = {axis.axis for axis in step.joined}
    taken: set[Letter] = {*step.batch, *step.contracted, *others, *joined}
    return tuple(x for x in w.letters if x not in taken)


def _in_order(value: Value, letters: Letters | tuple[Index, ...]) -> Letters:
    return tuple(x for x in value.letters if x in letters)


def _others(value: Value, letters: Letters) -> Letters:
    return tuple(x for x in value.letters if x not in letters)
