"""Steps with a convolution: features and kernel slide along each other, or two kernels merge.

A slide takes features on the grid (start a, step ga, length La) and a kernel of step d and length K to the grid
(start b, step gb, length Lb): a convolution with stride gb/ga and dilation d/ga, after a padding of (a - b)/ga on the
left and what the lengths ask for on the right. Either may be negative: a crop. So no position is computed that nobody
needs (see `ce_fx.plan.grid`).

torch convolves along three axes at once. Where a step has more, or mixes transposed and plain axes, the axes with the
smallest kernels are unfolded first: their kernel positions become an ordinary index that the convolution contracts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from ce_fx.algebra import Index
from ce_fx.lower.multiply import CONVS
from ce_fx.lower.padding import Dim, Pad, cropped_or_padded, unfolded
from ce_fx.lower.value import Extent, Letter, Letters, LoweringError, Value, arranged, dense, groups_of, split
from ce_fx.plan.grid import Grid
from ce_fx.plan.kinds import left_is_larger
from ce_fx.plan.network import Network
from ce_fx.plan.tree import AxisStep, Step

TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def slide(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """Features (the larger side) meet a kernel: a convolution, its groups the indices that both sides keep.

    Axes along which the smaller side has the features, or both are kernels, are unfolded first.
    """
    left = left_is_larger(step, network)
    dims = {}
    for axis in step.joined:
        number, grids = axis.axis, _grids(axis, left)
        if axis.features_left is None:
            larger, smaller = _contract_shifts(graph, number, _merge_dim(*grids), larger, smaller)
        elif axis.features_left is left:
            dims[number] = _slide_dim(network, number, *grids)
        else:
            dim = _slide_dim(network, number, grids[1], grids[0], grids[2])
            contract = _contract_shifts if network.axes[number].window.transposed else contract_windows
            smaller, larger = contract(graph, number, dim, smaller, larger)
    transposed = {axis for axis in dims if network.axes[axis].window.transposed}
    plain = sorted(set(dims) - transposed, key=lambda axis: -dims[axis].kernel)
    for number in plain[0 if transposed else 3 :]:
        larger, smaller = contract_windows(graph, number, dims.pop(number), larger, smaller)
    for number in sorted(transposed, key=lambda axis: -dims[axis].kernel)[3:]:
        larger, smaller = _contract_shifts(graph, number, dims.pop(number), larger, smaller)
    return convolution(graph, step, larger, smaller, dims, transposed=bool(transposed))


def merge(graph: Graph, network: Network, step: Step, larger: Value, smaller: Value, wish: Letters) -> Value:
    """Two kernels become one: `w[k] = sum over k = k1 + k2 of a[k1] * b[k2]`, a full convolution.

    torch's transposed convolution computes exactly that, without a flip; dilations become its stride and dilation.
    """
    left = left_is_larger(step, network)
    dims = {axis.axis: _merge_dim(*_grids(axis, left)) for axis in step.joined}
    for axis in sorted(dims, key=lambda axis: -dims[axis].kernel)[3:]:
        larger, smaller = _contract_shifts(graph, axis, dims.pop(axis), larger, smaller)
    return convolution(graph, step, larger, smaller, dims, transposed=True)


def slide_dims(network: Network, step: Step) -> dict[int, Dim]:
    """How the features, all on the larger side, are convolved along each joined axis."""
    left = left_is_larger(step, network)
    return {axis.axis: _slide_dim(network, axis.axis, *_grids(axis, left)) for axis in step.joined}


def _grids(axis: AxisStep, left_first: bool) -> tuple[Grid, Grid, Grid]:
    """The grids of the larger side, the smaller side and the result."""
    return (axis.left, axis.right, axis.out) if left_first else (axis.right, axis.left, axis.out)


def _slide_dim(network: Network, axis: int, features: Grid, kernel: Grid, out: Grid) -> Dim:
    window = network.axes[axis].window
    if window.transposed:
        return Dim(window.stride, kernel.step, -out.start, features.length, out.length, kernel.length)
    symbolic = bool(window.features.symbol)
    step = features.step
    dilation = kernel.step // step if kernel.length > 1 else 1
    stride = out.step // step if symbolic or out.length > 1 else 1
    left = (features.start - out.start) // step
    return Dim(stride, dilation, left, features.length, out.length, kernel.length, window.circular, symbolic)


def _merge_dim(first: Grid, second: Grid, out: Grid) -> Dim:
    stride = first.step // out.step if first.length > 1 else 1
    dilation = second.step // out.step if second.length > 1 else 1
    return Dim(stride, dilation, 0, first.length, out.length, second.length)


def convolution(
    graph: Graph, step: Step, x: Value, w: Value, dims: Mapping[int, Dim], transposed: bool = False
) -> Value:
    """One call of torch's convolution.

    x is arranged as [lead, groups + channels, *positions] and w as [groups + outs, channels, *kernel], or for a
    transposed call [groups + channels, outs, *kernel]. Positions are the joined axes and those that only x has, along
    which the kernel is one wide.
    """
    shared = [letter for letter in x.letters if letter in w.letters and letter not in dims]
    groups = tuple(letter for letter in shared if letter in step.batch)
    channels = tuple(letter for letter in shared if letter not in step.batch)
    outs = tuple(letter for letter in w.letters if letter not in shared and letter not in dims)
    positions, lead = _positions(x, shared, dims)
    places: list[Letters] = list(positions)
    features = Value(
        arranged(graph, x, [lead, groups + channels, *places]), (lead, groups + channels, *places), x.lengths
    )
    kernel: list[Letters] = [place if _joined(place, dims) else () for place in places]
    matrix = [groups + channels, outs] if transposed else [groups + outs, channels]
    weight = dense(graph, arranged(graph, w, [*matrix, *kernel]))
    plan = [dims[place[0]] if _joined(place, dims) else _through(x, place) for place in places]
    call = _transposed_call if transposed else _plain_call
    node = call(graph, features.node, weight, plan, groups_of(x, groups))
    where = {place[0]: n for n, place in enumerate(places, 2)}
    new: dict[Letter, int] = {axis: length(graph, node, where[axis], dim) for axis, dim in dims.items()}
    lengths = {**w.lengths, **x.lengths, **new}
    return Value(node, (lead, groups + outs, *places), lengths)


def length(graph: Graph, node: Node, place: int, dim: Dim) -> int:
    """The length of a dim of a result, as its own node where it is symbolic."""
    return Extent.of(graph, node, place, dim.out) if dim.symbolic else dim.out


def _positions(x: Value, shared: Sequence[Letter], dims: Mapping[int, Dim]) -> tuple[list[Letters], Letters]:
    """The position dims of a convolution, at most three, and the letters that ride in its batch.

    Axes that only x has become positions where there is room, several of them merged if they are neighbours there.
    """
    own = [letter for letter in x.letters if letter not in shared]
    axes = [letter for letter in own if isinstance(letter, int)]
    if len(axes) <= 3:
        return [(axis,) for axis in axes], tuple(letter for letter in own if not isinstance(letter, int))
    joined = [axis for axis in axes if axis in dims]
    others = tuple(axis for axis in axes if axis not in dims)
    ordinary = tuple(letter for letter in own if not isinstance(letter, int))
    if len(joined) < 3:
        return [*((axis,) for axis in joined), others], ordinary
    return [(axis,) for axis in joined], ordinary + others


def _joined(place: Letters, dims: Mapping[int, Dim]) -> bool:
    return place[0] in dims


def _through(x: Value, place: Letters) -> Dim:
    """A position dim that the convolution leaves as it is."""
    size = prod(x.size(letter) for letter in place)
    return Dim(length=size, out=size)


def _plain_call(graph: Graph, x: Node, w: Node, dims: Sequence[Dim], groups: int) -> Node:
    """torch.conv1d/2d/3d: symmetric padding goes into the call, the rest is padded or cropped before."""
    inside = [dim.symmetric for dim in dims]
    outside = [
        Pad(dim.length, *dim.outside(pad), dim.circular, dim.symbolic) for dim, pad in zip(dims, inside, strict=True)
    ]
    if any(dim.symbolic and dim.stride > 1 and (pad.left or pad.right) for dim, pad in zip(dims, outside, strict=True)):
        raise LoweringError("a strided convolution over a symbolic size would be padded or cropped by its remainder")
    x = cropped_or_padded(graph, x, outside)
    given = {
        "stride": [dim.stride for dim in dims],
        "padding": inside,
        "dilation": [dim.dilation for dim in dims],
        "groups": groups,
    }
    return graph.call_function(CONVS[len(dims)], (x, w), _short(given))


def _transposed_call(graph: Graph, x: Node, w: Node, dims: Sequence[Dim], groups: int) -> Node:
    """torch.conv_transpose1d/2d/3d, whose result is cropped or padded to the positions that are wanted."""
    paddings, extras, rest = [], [], []
    for dim in dims:
        full = (dim.length - 1) * dim.stride + dim.extent
        start = -dim.left  # the first wanted position of the full result
        extra = dim.out - (full - 2 * start)
        fits = start >= 0 and 0 <= extra < max(dim.stride, dim.dilation) and full - 2 * start + extra > 0
        paddings.append(start if fits else 0)
        extras.append(extra if fits else 0)
        rest.append(Pad(dim.out) if fits else Pad(full, -start, dim.out + start - full))
    given = {
        "stride": [dim.stride for dim in dims],
        "padding": paddings,
        "output_padding": extras,
        "groups": groups,
        "dilation": [dim.dilation for dim in dims],
    }
    node = graph.call_function(TRANSPOSED[len(dims)], (x, w), _short(given))
    return cropped_or_padded(graph, node, rest)


def _short(given: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that are torch's defaults; one number where all axes agree."""
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    short: dict[str, Any] = {}
    for name, value in given.items():
        same = value[0] if isinstance(value, list) and len(set(value)) == 1 else value
        if same != defaults[name]:
            short[name] = same
    return short


def contract_windows(graph: Graph, axis: int, dim: Dim, x: Value, w: Value) -> tuple[Value, Value]:
    """Unfold x along an axis: the kernel's positions become an index of both sides that is contracted."""
    tap = Index(f"tap.{axis}", dim.kernel)
    x = split(graph, x)
    place = x.dims.index((axis,))
    pads = [Pad(x.size(d[0])) for d in x.dims]
    pads[place] = Pad(dim.length, dim.left, dim.right, dim.circular, dim.symbolic)
    if dim.symbolic and dim.stride > 1:
        raise LoweringError("strided windows over a symbolic size would be padded or cropped by its remainder")
    node = cropped_or_padded(graph, x.node, pads)
    node = unfolded(graph, node, place, dim)
    opened = Value(node, (*x.dims, (tap,)), {**x.lengths, axis: length(graph, node, place, dim)})
    return opened, renamed(w, axis, tap)


def _contract_shifts(graph: Graph, axis: int, dim: Dim, a: Value, b: Value) -> tuple[Value, Value]:
    """An axis along which positions add up, `sum of a[i] * b[k] over stride*i + dilation*k = m - left`, contracted.

    That is b, reversed, sliding over a with zeros put between its positions: two kernels, or a transposed convolution.
    """
    a = split(graph, a)
    place = a.dims.index((axis,))
    node, size = a.node, dim.length
    last = len(a.dims) - 1
    if dim.stride > 1:  # zeros between the positions of a
        node = graph.call_function(torch.unsqueeze, (node, place + 1))
        node = graph.call_function(torch.nn.functional.pad, (node, [0, 0] * (last - place) + [0, dim.stride - 1]))
        node = graph.call_function(torch.flatten, (node, place, place + 1))
        size *= dim.stride
    reach = dim.extent - 1
    spread = Dim(1, dim.dilation, reach + dim.left, size, dim.out, dim.kernel)
    b = split(graph, b)
    reversed_b = graph.call_function(torch.flip, (b.node, [b.dims.index((axis,))]))
    lengths = {**a.lengths, axis: size}
    return contract_windows(graph, axis, spread, Value(node, a.dims, lengths), Value(reversed_b, b.dims, b.lengths))


def renamed(value: Value, axis: int, letter: Index) -> Value:
    """A value with the letter of an axis replaced."""
    dims = tuple(tuple(letter if x == axis else x for x in dim) for dim in value.dims)
    return Value(value.node, dims, {a: n for a, n in value.lengths.items() if a != axis})
