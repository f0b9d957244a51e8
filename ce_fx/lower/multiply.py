"""Steps without a convolution: broadcast multiply, matmul, batched matmul, 1x1 convolution."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import torch
from torch.fx import Graph, Node

from ce_fx.lower.value import Letter, Letters, Value, arranged, dense, product_of
from ce_fx.plan.kinds import MANY
from ce_fx.plan.network import Network
from ce_fx.plan.tree import Step

CONVS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def product(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """Broadcast multiply, with the result's letters in the order that is wished for; operands are read by views."""
    held = {*larger.letters, *smaller.letters}
    order = tuple(x for x in wish if x in held)
    sides = []
    for value in (larger, smaller):
        held = set(value.letters)
        sides.append(arranged(graph, value, [(x,) if x in held else () for x in order]))
    lengths = {**smaller.lengths, **larger.lengths}
    return Value(graph.call_function(torch.mul, tuple(sides)), tuple((x,) for x in order), lengths)


def matrix(
    graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters, swap: bool = False
) -> Value:
    """One matmul, `[rows, K] @ [K, columns]`, or transposed where the rows are wished for last.

    An operand that is stored the other way round is read transposed. With `swap` the columns are last where the rows
    are wished for last, and the other way round: the same products in an order that a library may do faster.

    Where K lies between the larger's rows, the leading ones become a batch, and `[columns, K] @ [B, K, rows]` is
    taken: the large operand is not moved.
    """
    summed = _in_order(larger, step.contracted)
    rows, columns = _others(larger, summed), _others(smaller, summed)
    lengths = {**larger.lengths, **smaller.lengths}
    if larger.letters not in ((*rows, *summed), (*summed, *rows)) and columns:
        start = larger.letters.index(summed[0])
        lead, tail = larger.letters[:start], larger.letters[start + len(summed) :]
        if larger.letters == (*lead, *summed, *tail) and prod(map(larger.size, tail)) >= MANY:
            return at_each(graph, larger, smaller, (lead, summed, tail), columns, wish)
    if bool(wish and wish[-1] in rows) != swap:
        a = _two_dims(graph, smaller, columns, summed)
        b = _two_dims(graph, larger, summed, rows)
        return Value(graph.call_function(torch.mm, (a, b)), (columns, rows), lengths)
    a = _two_dims(graph, larger, rows, summed)
    b = _two_dims(graph, smaller, summed, columns)
    return Value(graph.call_function(torch.mm, (a, b)), (rows, columns), lengths)


def matrix_conv(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """`[rows, K] @ [K, columns]` as a 1x1 convolution with K channels: views of the same memory.

    The side with more rows is the image, channels last: it reads and writes what the matmul would, by torch's
    convolution library. Where K lies between its rows it is as many images as there are leading rows, channels first.
    """
    summed = _in_order(larger, step.contracted)
    rows, columns = _others(larger, summed), _others(smaller, summed)
    lengths = {**larger.lengths, **smaller.lengths}
    w = dense(graph, arranged(graph, smaller, [columns, summed, (), ()]))
    start = larger.letters.index(summed[0])
    lead, tail = larger.letters[:start], larger.letters[start + len(summed) :]
    if tail and larger.letters == (*lead, *summed, *tail):
        x = arranged(graph, larger, [lead, summed, tail[:-1], tail[-1:]])
        return Value(graph.call_function(torch.conv2d, (x, w)), (lead, columns, tail[:-1], tail[-1:]), lengths)
    x = graph.call_function(torch.permute, (arranged(graph, larger, [(), rows, (), summed]), [0, 3, 1, 2]))
    node = graph.call_function(torch.conv2d, (x, w))
    node = graph.call_function(torch.permute, (node, [0, 2, 3, 1]))
    return Value(node, ((), rows, (), columns), lengths)


def batched(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """A batched matmul over the indices that both sides keep.

    With convolution axes at the larger's end it is `[batch, columns, K] @ [.., batch, K, pixels]`, so that they stay
    at the end; else `[batch, rows, K] @ [batch, K, columns]`, or transposed where the rows are wished for last.
    """
    batch, summed = _in_order(larger, step.batch), _in_order(larger, step.contracted)
    shared = {*batch, *summed}
    rows, columns = _others(larger, shared), _others(smaller, shared)
    lengths = {**larger.lengths, **smaller.lengths}
    pixels_last = tuple(x for x in rows if isinstance(x, int))
    lead = tuple(x for x in rows if not isinstance(x, int))
    if pixels_last:
        w = arranged(graph, smaller, [batch, columns, summed])
        if lead:
            x = arranged(graph, larger, [lead, batch, summed, pixels_last])
            return Value(graph.call_function(torch.matmul, (w, x)), (lead, batch, columns, pixels_last), lengths)
        x = arranged(graph, larger, [batch, summed, pixels_last])
        return Value(graph.call_function(torch.bmm, (w, x)), (batch, columns, pixels_last), lengths)
    if wish and wish[-1] in rows:
        w = arranged(graph, smaller, [batch, columns, summed])
        x = arranged(graph, larger, [batch, summed, rows])
        return Value(graph.call_function(torch.bmm, (w, x)), (batch, columns, rows), lengths)
    x = arranged(graph, larger, [batch, rows, summed])
    w = arranged(graph, smaller, [batch, summed, columns])
    return Value(graph.call_function(torch.bmm, (x, w)), (batch, rows, columns), lengths)


def pixels(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """A matrix applied at every position: a 1x1 convolution."""
    summed = _in_order(larger, step.contracted)
    rows, columns = _others(larger, summed), _others(smaller, summed)
    spatial = tuple(x for x in rows if isinstance(x, int))
    lead = tuple(x for x in rows if not isinstance(x, int))
    dims: list[Letters] = [(x,) for x in spatial] if len(spatial) <= 3 else [spatial]
    x = arranged(graph, larger, [lead, summed, *dims])
    w = dense(graph, arranged(graph, smaller, [columns, summed, *(() for _ in dims)]))
    node = graph.call_function(CONVS[len(dims)], (x, w))
    return Value(node, (lead, columns, *dims), {**smaller.lengths, **larger.lengths})


def pixels_matmul(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """The same as a matmul for each entry of the lead: see `at_each`."""
    summed = _in_order(larger, step.contracted)
    rows, columns = _others(larger, summed), _others(smaller, summed)
    spatial = tuple(x for x in rows if isinstance(x, int))
    lead = tuple(x for x in rows if not isinstance(x, int))
    return at_each(graph, larger, smaller, (lead, summed, spatial), columns, wish)


def at_each(
    graph: Graph, x: Value, w: Value, dims: tuple[Letters, Letters, Letters], columns: Letters, wish: Letters
) -> Value:
    """`[columns, K] @ [lead, K, positions]`, or transposed where the columns are wished for last: one product a lead.

    As a bmm with the matrix expanded, a view. torch.matmul folds a plain matrix that needs a gradient into one product
    with a copy of x on either side, even where no gradient is recorded (`should_fold` in ATen's LinearAlgebra.cpp),
    which takes up to five times as long.
    """
    lead, summed, positions = dims
    times = product_of(graph, [x.size(letter) for letter in lead])
    lengths = {**w.lengths, **x.lengths}
    if wish and wish[-1] in columns:
        features = arranged(graph, x, [lead, positions, summed])
        matrix = arranged(graph, w, [(), summed, columns])
        repeated = graph.call_method("expand", (matrix, times, -1, -1))
        return Value(graph.call_function(torch.bmm, (features, repeated)), (lead, positions, columns), lengths)
    matrix = arranged(graph, w, [(), columns, summed])
    features = arranged(graph, x, [lead, summed, positions])
    repeated = graph.call_method("expand", (matrix, times, -1, -1))
    return Value(graph.call_function(torch.bmm, (repeated, features)), (lead, columns, positions), lengths)


def _two_dims(graph: Graph, value: Value, first: Letters, second: Letters) -> Node:
    """The value as a matrix; read transposed where that is how it is stored."""
    if first and second and value.letters == (*second, *first):
        return graph.call_function(torch.t, (arranged(graph, value, [second, first]),))
    return arranged(graph, value, [first, second])


def _in_order(value: Value, letters: Sequence[Letter]) -> Letters:
    """Some letters in the order in which a value stores them."""
    return tuple(x for x in value.letters if x in letters)


def _others(value: Value, letters: Collection[Letter]) -> Letters:
    return tuple(x for x in value.letters if x not in letters)
