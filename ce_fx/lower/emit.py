"""A plan becomes torch ops: one well-shaped op a step.

Only public torch functions and tensor methods are emitted, with literal arguments, so that the graph runs and prints
anywhere, and is cached by compilers downstream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import TypeAlias

import torch
from torch.fx import Graph, Node

from ce_fx.algebra import Index, flat
from ce_fx.lower.convolve import merge, slide
from ce_fx.lower.multiply import batched, matrix, matrix_conv, pixels, pixels_matmul, product
from ce_fx.lower.resize import before, interpolate, resized
from ce_fx.lower.slides import band, grouped, taps, unfold
from ce_fx.lower.value import Extent, Letter, Letters, LoweringError, Value, arranged, shape_of, split
from ce_fx.plan.kinds import kind_of, left_is_larger
from ce_fx.plan.network import Network
from ce_fx.plan.plan import Plan
from ce_fx.plan.tree import Step, Tree, step_of, subset_of

__all__ = ["LoweringError", "emit"]

Emitter: TypeAlias = Callable[..., Value]
"""`emitter(graph, network, step, larger, smaller, wish)`"""

EMITTERS: dict[str, Emitter] = {
    "slide": slide,
    "merge": merge,
    "mul": product,
    "bmm": batched,
    "pixels": pixels,
    "mm": matrix,
}
"""From the kind of a step to what emits it; each takes the larger side first."""

WAYS: dict[str, Emitter] = {
    "swapped": partial(matrix, swap=True),
    "mm_conv": matrix_conv,
    "matmul": pixels_matmul,
    "grouped": grouped,
    "unfold": unfold,
    "unfold_conv": partial(unfold, conv=True),
    "taps": taps,
    "taps_conv": partial(taps, conv=True),
    "band": band,
}
"""The same for the ways that are not those of the kind; see `ce_fx.plan.ways`."""


def emit(plan: Plan, graph: Graph, leaves: Sequence[Node], order: Sequence[int] | None = None) -> Node:
    """Emit the evaluation of a product along its plan, at the graph's insertion point.

    Args:
        plan: the network and the tree.
        graph: where to emit.
        leaves: node `n` gives operand `n`, with the axes of `term.factors[n]`.
        order: the output's axes from the slowest to the fastest, as the result is best stored; their own by default.

    Returns:
        The node that has the output's axes: an axis of several indices is flattened row-major, an empty one has size
        1, an output index that no operand has is expanded.

    Raises:
        LoweringError: a step has no exact form in torch ops.
    """
    network = plan.network
    if any(index.size == 0 for factor in network.term.factors for index in factor.indices):
        return _zeros(network, graph, leaves)
    scaled = _scaled_leaf(network)
    if plan.channels_last:
        leaves = [_channels_last(network, graph, n, node) for n, node in enumerate(leaves)]
    values = [
        _operand(network, graph, n, node, network.term.coefficient if n == scaled else 1)
        for n, node in enumerate(leaves)
    ]
    outs = {axis.window.out: a for a, axis in enumerate(network.axes)}
    axes = network.output if order is None else tuple(network.output[dim] for dim in order)
    wish = tuple(outs.get(index, index) for index in flat(axes))
    return _finish(network, graph, _emit_tree(plan.tree, plan, graph, values, wish))


def _emit_tree(tree: Tree, plan: Plan, graph: Graph, values: Sequence[Value], wish: Letters) -> Value:
    """Emit a tree from its leaves up; the order of letters that a result should have is handed down."""
    if isinstance(tree, int):
        return values[tree]
    network = plan.network
    whole = resized(tree, network, values)
    if whole is not None:
        rest, axes = whole
        return interpolate(graph, _emit_tree(rest, plan, graph, values, before(axes, wish)), axes, wish)
    step = step_of(network, subset_of(tree[0]), subset_of(tree[1]))
    first = left_is_larger(step, network)
    sides = (tree[0], tree[1]) if first else (tree[1], tree[0])
    wishes = _wishes(step, kind_of(step, network), first, wish)
    larger, smaller = (
        _emit_tree(side, plan, graph, values, wished) for side, wished in zip(sides, wishes, strict=True)
    )
    emitter = WAYS.get(plan.ways.get(step.left | step.right, ""), EMITTERS[kind_of(step, network)])
    return emitter(graph, network, step, larger, smaller, wish)


def _wishes(step: Step, kind: str, left_first: bool, wish: Letters) -> tuple[Letters, Letters]:
    """In which order a step reads the letters of its larger and of its smaller side without moving them.

    Features as [lead, batch, summed, axes], kernels as [batch, columns, summed, axes]; a product reads both in the
    order of its result.
    """
    rank = {letter: n for n, letter in enumerate(wish)}

    def by_wish(*letters: Letter) -> Letters:
        return tuple(sorted(letters, key=lambda letter: rank.get(letter, len(rank))))

    sides = (step.left_free, step.left_axes), (step.right_free, step.right_axes)
    (rows, axes), (columns, other_axes) = sides if left_first else sides[::-1]
    if kind == "mul":
        return by_wish(*step.batch, *rows, *axes), by_wish(*step.batch, *columns, *other_axes)
    batch, summed, joined = by_wish(*step.batch), tuple(step.contracted), tuple(axis.axis for axis in step.joined)
    features = (*by_wish(*rows), *batch, *summed, *by_wish(*axes, *joined))
    if kind in ("mm", "bmm") and not axes:
        features = (*batch, *by_wish(*rows), *summed)
        if not (wish and wish[-1] in rows):  # rows @ columns, else columns @ rows: see `matrix`
            return features, (*batch, *summed, *by_wish(*columns, *other_axes))
    return features, (*batch, *by_wish(*columns, *other_axes), *summed, *by_wish(*joined))


def has_images(network: Network) -> bool:
    """Whether an operand has two axes of positions and two dims more: what torch calls channels last applies to it."""
    return any(_is_image(network, n) for n in range(network.n))


def _is_image(network: Network, n: int) -> bool:
    axes = network.term.factors[n].axes
    features = {axis.window.features for axis in network.axes}
    return len(axes) == 4 and all(len(axis) == 1 and axis[0] in features for axis in axes[2:])


def _channels_last(network: Network, graph: Graph, n: int, node: Node) -> Node:
    if not _is_image(network, n):
        return node
    return graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})


def _scaled_leaf(network: Network) -> int:
    """The operand that takes the coefficient: the smallest, one that depends on weights only before any other."""
    return min(range(network.n), key=lambda n: (not network.operands[n].constant, network.operand_size(n)))


def _operand(network: Network, graph: Graph, n: int, node: Node, coefficient: complex | float | int) -> Value:
    """An operand, its diagonals taken and its private indices summed."""
    letters = {axis.window.features: a for a, axis in enumerate(network.axes) if axis.features == n}
    letters |= {
        tap.index: a
        for a, axis in enumerate(network.axes)
        for tap, kernel in zip(axis.window.taps, axis.kernels, strict=True)
        if kernel == n
    }
    lengths: dict[Letter, int] = {a: index.size for index, a in letters.items()}
    dims: tuple[Letters, ...] = tuple(
        tuple(letters.get(index, index) for index in axis) for axis in network.term.factors[n].axes
    )
    lengths |= _extents(network, graph, n, node, letters)
    value = Value(node, dims, lengths)
    if len(set(value.letters)) < len(value.letters):
        value = _diagonals(graph, split(graph, value))
    kept = network.keep(1 << n)
    private = [x for x in value.letters if isinstance(x, Index) and not network.bit[x] & kept]
    if private:
        value = split(graph, value)
        places = [place for place, dim in enumerate(value.dims) if dim[0] in private]
        summed = graph.call_function(torch.sum, (value.node,), {"dim": places})
        value = Value(summed, tuple(d for d in value.dims if d[0] not in private), lengths)
    if coefficient != 1:
        value = Value(graph.call_function(torch.mul, (value.node, coefficient)), value.dims, lengths)
    return value


def _extents(
    network: Network, graph: Graph, n: int, node: Node, letters: Mapping[Index, Letter]
) -> dict[Letter, Extent]:
    """The symbolic sizes of an operand.

    Raises:
        LoweringError: one is not a dim of its own.
    """
    found: dict[Letter, Extent] = {}
    for place, axis in enumerate(network.term.factors[n].axes):
        for index in axis:
            if index.symbol and len(axis) > 1:
                raise LoweringError(f"the symbolic size {index.symbol} is part of a merged axis")
            if index.symbol:
                found[letters.get(index, index)] = Extent.of(graph, node, place, index.size)
    return found


def _diagonals(graph: Graph, value: Value) -> Value:
    """Dims that hold the same letter become one, at the end."""
    node, dims = value.node, list(value.dims)
    while len(set(dims)) < len(dims):
        twice = next(dim for dim in dims if dims.count(dim) > 1)
        first = dims.index(twice)
        second = dims.index(twice, first + 1)
        node = graph.call_function(torch.diagonal, (node,), {"dim1": first, "dim2": second})
        dims = [dim for place, dim in enumerate(dims) if place not in (first, second)] + [twice]
    return Value(node, tuple(dims), value.lengths)


def _finish(network: Network, graph: Graph, value: Value) -> Node:
    """The output's axes: order, grouping, and what is broadcast."""
    outs = {axis.window.out: a for a, axis in enumerate(network.axes)}
    dims: list[Letters] = [tuple(outs.get(index, index) for index in axis) for axis in network.output]
    held = set(value.letters)
    missing = {letter for dim in dims for letter in dim if letter not in held}
    if not missing:
        return arranged(graph, value, dims)
    ordered = [letter for dim in dims for letter in dim]
    node = arranged(graph, value, [(letter,) if letter in held else () for letter in ordered])
    if any(isinstance(letter, Index) and letter.symbol for letter in missing):
        raise LoweringError("a result is repeated along a symbolic size")
    sizes = [letter.size if letter in missing and isinstance(letter, Index) else -1 for letter in ordered]
    expanded = graph.call_method("expand", (node, *sizes))
    if all(len(dim) == 1 for dim in dims):
        return expanded
    lengths = {**value.lengths}
    return graph.call_function(torch.reshape, (expanded, shape_of(graph, Value(expanded, tuple(dims), lengths), dims)))


def _zeros(network: Network, graph: Graph, leaves: Sequence[Node]) -> Node:
    """A product with an empty operand: zeros that still carry (zero) gradients to every operand."""
    total: Node | None = None
    for leaf in leaves:
        nothing = graph.call_function(torch.narrow, (graph.call_function(torch.reshape, (leaf, [-1])), 0, 0, 0))
        zero = graph.call_function(torch.sum, (nothing,))
        total = zero if total is None else graph.call_function(torch.add, (total, zero))
    shape = [prod(index.size for index in flat((axis,))) for axis in network.output]
    assert total is not None
    return graph.call_method("expand", (total, *shape)) if shape else total
