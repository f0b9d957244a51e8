"""Per-channel spatial operators, which channel mixing may cross: resizes and average pools.

Each is one linear map per spatial axis. An average over windows of equal weight is a sum over a part of the axis, or a
window with a constant kernel, so that it merges with the kernels around it; any other map is a constant matrix, which
is exactly what the op itself makes of the identity (`ce_fx.lower.derive`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from ce_fx.algebra import Expression, Factor, Index, Tap, Term, Window, scale
from ce_fx.algebra.derived import Derived
from ce_fx.lift.arguments import arguments, each
from ce_fx.lift.products import Builder, Refused, lone_index, slid
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts

aten = torch.ops.aten

Step: TypeAlias = Callable[[Expression, int, int], Expression]
"""`step(x, dim, place)`: x with one spatial axis mapped; `dim` counts all axes, `place` the spatial ones."""

_RESIZES: dict[Any, str] = {
    aten.upsample_nearest1d.vec: "nearest",
    aten.upsample_nearest2d.vec: "nearest",
    aten.upsample_nearest3d.vec: "nearest",
    aten._upsample_nearest_exact1d.vec: "nearest-exact",
    aten._upsample_nearest_exact2d.vec: "nearest-exact",
    aten._upsample_nearest_exact3d.vec: "nearest-exact",
    aten.upsample_linear1d.vec: "linear",
    aten.upsample_bilinear2d.vec: "bilinear",
    aten.upsample_trilinear3d.vec: "trilinear",
    aten.upsample_bicubic2d.vec: "bicubic",
}
"""From the overload to the mode of `torch.nn.functional.interpolate`."""


@lifts(*_RESIZES)
def resize(node: Node, operands: Operands) -> Expression | Refusal:
    """`y[.., o, ..] = sum_i x[.., i, ..] * m[i, o]` along each spatial axis; the rows of every m sum to 1.

    The scale factors that the op was given are kept: with them it does not use the ratio of the sizes.
    """
    given = arguments(node)
    sizes = _spatial(node)
    if isinstance(sizes, Refusal):
        return sizes
    mode, align, scales = _RESIZES[node.target], given.get("align_corners"), given["scale_factors"]
    if scales is not None and not all(isinstance(factor, (int, float)) for factor in scales):
        return Refusal("a resize by what is no number in the graph")
    if scales is not None and not align and _gradient_is_another(mode, sizes, scales):
        return Refusal("a resize whose gradient, in torch, does not belong to its values")

    def step(x: Expression, dim: int, place: int) -> Expression:
        size, out = sizes[place]
        factor = None if scales is None else float(scales[place])
        if size == out and factor in (None, 1.0):
            return x
        leaf = Derived("resize", (), (mode, len(sizes), size, out, align, factor))
        return _by_matrix(x, dim, leaf, (size, out), operands)

    return _along_axes(node, operands, len(sizes), step)


def _gradient_is_another(mode: str, sizes: Sequence[tuple[int, int]], scales: Sequence[float]) -> bool:
    """Whether torch's backward may read other neighbours than its forward: both would have to be kept.

    Where a size stays or doubles (bicubic: where all stay) the backward on CPU takes a short cut that forgets a factor
    which is not the ratio of the sizes; the forward of nearest with two axes takes it too.
    """
    both = zip(sizes, scales, strict=True)
    odd = [(size, out) for (size, out), factor in both if size > 1 and out != size * factor]
    if mode == "bicubic":
        return bool(odd) and all(size == out for size, out in sizes)
    return mode == "nearest" and len(sizes) != 2 and any(out in (size, 2 * size) for size, out in odd)


@lifts(aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec)
def antialiased(node: Node, operands: Operands) -> Expression | Refusal:
    """Left alone."""
    return Refusal("a resize with antialias is left as it is")


@dataclass(frozen=True)
class _Pool:
    """An average pool along one axis.

    Attributes:
        size, out: positions of the input and the output.
        kernel, stride, pad: as given.
        ceil, counted: `ceil_mode` and `count_include_pad`.
    """

    size: int
    out: int
    kernel: int
    stride: int
    pad: int = 0
    ceil: bool = False
    counted: bool = True

    @property
    def overhangs(self) -> bool:
        """Whether the last output reads beyond the padding, which does not count."""
        return (self.out - 1) * self.stride + self.kernel > self.size + 2 * self.pad

    @property
    def even(self) -> bool:
        """Whether every output is the sum of its window, padding included, by one number."""
        return not self.overhangs and (self.pad == 0 or self.counted)

    @property
    def apart(self) -> bool:
        """Whether the windows are the axis cut in equal parts."""
        return self.pad == 0 and self.kernel == self.stride and self.kernel * self.out == self.size


@lifts(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def adaptive_avg_pool(node: Node, operands: Operands) -> Expression | Refusal:
    """Output o is the mean over `[floor(o*I/O), ceil((o+1)*I/O))`; parts of equal size where O divides I."""
    sizes = _spatial(node)
    if isinstance(sizes, Refusal):
        return sizes

    def step(x: Expression, dim: int, place: int) -> Expression:
        size, out = sizes[place]
        if size % out == 0:
            return _pooled(x, dim, _Pool(size, out, size // out, size // out), operands)
        return _by_matrix(x, dim, Derived("adaptive_avg_pool", (), (size, out)), (size, out), operands)

    return _along_axes(node, operands, len(sizes), step)


@lifts(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(node: Node, operands: Operands) -> Expression | Refusal:
    """The sum over a window by its size, by the part of it that counts, or by a number that is given."""
    given = arguments(node)
    sizes = _spatial(node)
    if isinstance(sizes, Refusal):
        return sizes
    n = len(sizes)
    kernel, pad = each(given["kernel_size"], n), each(given["padding"], n)
    stride = each(given["stride"], n) if given["stride"] else kernel
    if not all(isinstance(number, int) for number in (*kernel, *stride, *pad)):
        return Refusal("a pool whose kernel, stride or padding is not a number in the graph")
    divisor = given.get("divisor_override")
    counted = given["count_include_pad"] or divisor is not None
    pools = [
        _Pool(*sizes[place], kernel[place], stride[place], pad[place], given["ceil_mode"], counted)
        for place in range(n)
    ]
    if divisor is not None and any(pool.overhangs for pool in pools):
        return Refusal("a pool with a divisor of its own whose last window reads beyond the padding")
    result = _along_axes(node, operands, n, lambda x, dim, place: _pooled(x, dim, pools[place], operands))
    if isinstance(result, Refusal) or divisor is None:
        return result
    return scale(result, prod(kernel) / divisor)


def _along_axes(node: Node, operands: Operands, n: int, step: Step) -> Expression | Refusal:
    """The last n axes of the operand, each with its map."""
    x = operands.tensor(node.args[0])
    try:
        for place in range(n):
            x = step(x, len(x.axes) - n + place, place)
    except Refused as refused:
        return Refusal(str(refused))
    return x


def _by_matrix(
    x: Expression, dim: int, leaf: Derived, shape: tuple[int, int], operands: Operands, constants: bool = True
) -> Expression:
    """`sum_i x[.., i, ..] * m[i, o]`, m the leaf.

    Args:
        x: the operand.
        dim: which axis.
        leaf: the matrix.
        shape: its sizes.
        operands: where leaves are from.
        constants: the weights of every o sum to 1, so that what does not depend on i stays as it is.
    """
    if slid_over(x, dim):
        raise Refused("a resize, or a pool of uneven weights, after a convolution that slides over the same axis")
    if constants and shape[0] == 1:  # one position is repeated
        axes = (*x.axes[:dim], (*x.axes[dim], operands.fresh("h", shape[1])), *x.axes[dim + 1 :])
        return replace(x, axes=axes)
    builder = Builder((x, operands.derived(leaf, shape)), operands.fresh)
    builder.join((0, dim), (1, 0))
    read = {index for index in builder.axis(0, dim) if index.size != 1}
    (matrix,) = builder.expressions[1].terms[0].factors
    terms = tuple(
        term if constants and read.isdisjoint(term.indices) else replace(term, factors=(*term.factors, matrix))
        for term in builder.expressions[0].terms
    )
    return _with_axis(builder, dim, builder.axis(1, 1), terms)


def _pooled(x: Expression, dim: int, pool: _Pool, operands: Operands) -> Expression:
    """An average pool along one axis, in the first form that is exact here."""
    if pool.kernel == pool.stride == 1 and pool.pad == 0:
        return x
    if slid_over(x, dim) and pool.even:
        return _by_window(x, dim, pool, operands)
    forms = [form for form, exact in ((_by_parts, pool.apart), (_by_window, pool.even)) if exact]
    for form in forms:
        try:
            return form(x, dim, pool, operands)
        except Refused:
            pass  # the matrix is the last one, and gives its reason
    params = pool.size, pool.kernel, pool.stride, pool.pad, pool.ceil, pool.counted
    leaf = Derived("avg_pool", (), params)
    means = pool.pad == 0 or not pool.counted
    return _by_matrix(x, dim, leaf, (pool.size, pool.out), operands, constants=means)


def averaged(x: Expression, dim: int, size: int, operands: Operands) -> Expression:
    """The mean over all positions of an axis, which keeps one.

    Raises:
        Refused: it has no exact form.
    """
    return _pooled(x, dim, _Pool(size, 1, size, size), operands)


def _by_parts(x: Expression, dim: int, pool: _Pool, operands: Operands) -> Expression:
    """The axis is split into [out, kernel], and the kernel summed."""
    builder = Builder((x,), operands.fresh)
    builder.split(0, dim, (pool.out, pool.kernel))
    axes = builder.expressions[0].axes
    return scale(builder.product((*axes[: dim + 1], *axes[dim + 2 :])), 1 / pool.kernel)


def _by_window(x: Expression, dim: int, pool: _Pool, operands: Operands) -> Expression:
    """A window with a constant kernel, composed with the one that gives the axis."""
    builder = Builder((x,), operands.fresh)
    index = lone_index(builder, 0, dim, "h")
    positions, tap = operands.fresh(index.name, pool.out), operands.fresh("k", pool.kernel)
    window = Window(index, positions, (Tap(tap),), pool.stride, pool.pad)
    before = builder.expressions[0].terms
    after = [slid(term, window) for term in before]
    if None in after and pool.pad:
        raise Refused("a constant before a padded pool: the padding is zero and not that constant")
    kernels: tuple[Factor, ...] = ()
    if any(term is not None for term in after):
        full = operands.derived(Derived("full", (), (pool.kernel, 1 / pool.kernel)), (pool.kernel,))
        kernels = (Factor(full.terms[0].factors[0].leaf, ((tap,),)),)
    terms = tuple(  # the mean of what does not depend on the axis is itself
        old if new is None else replace(new, factors=(*new.factors, *kernels))
        for old, new in zip(before, after, strict=True)
    )
    return _with_axis(builder, dim, (positions,), terms)


def _with_axis(builder: Builder, dim: int, axis: tuple[Index, ...], terms: tuple[Term, ...]) -> Expression:
    """The first operand of a builder with other terms, and another axis in the place of one."""
    axes = builder.expressions[0].axes
    axes = (*axes[:dim], axis, *axes[dim + 1 :])
    builder.expressions = [Expression(axes, terms)]
    return builder.total(axes)


def slid_over(x: Expression, dim: int) -> bool:
    """Whether an axis holds positions that a kernel slides over."""
    outs = {window.out for term in x.terms for window in term.windows if window.taps}
    return any(index in outs and index.size != 1 for index in x.axes[dim])


def _spatial(node: Node) -> tuple[tuple[int, int], ...] | Refusal:
    """(input size, output size) of each spatial axis."""
    n = _DIMS[str(node.target).partition("d.")[0][-1]]
    before, after = fake_of(node.args[0]).shape[-n:], fake_of(node).shape[-n:]
    if not all(isinstance(size, int) for size in (*before, *after)):
        return Refusal("a resize or pool to or from a size that is not a number in the graph")
    return tuple(zip(before, after, strict=True))


_DIMS = {"1": 1, "2": 2, "3": 3}
