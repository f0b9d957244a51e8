"""What a list of ATen nodes costs: one `Op` per node that does work, copies included.

The same table prices what the user wrote and what a plan emits, so the two are compared on equal terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from ce_fx.lower.price_attention import attention_ops, projected_attention_ops
from ce_fx.lower.price_conv import conv_ops, transposed_ops
from ce_fx.lower.price_einsum import einsum_ops
from ce_fx.plan.ops import Op
from ce_fx.sizes import hint

aten = torch.ops.aten

Formula: TypeAlias = Callable[[Node], "tuple[Op, ...]"]

FORMULAS: dict[Any, Formula] = {}


def ops_of_nodes(nodes: Iterable[Node]) -> tuple[Op, ...]:
    """The ops of some ATen nodes (with fake values in `meta["val"]`); views and unknown ops cost nothing."""
    return tuple(op for node in nodes if node.target in FORMULAS for op in FORMULAS[node.target](node))


def counted(node: Node) -> bool:
    """Whether the table has a formula for an ATen node."""
    return node.target in FORMULAS


def _prices(*targets: Any) -> Callable[[Formula], Formula]:
    def register(formula: Formula) -> Formula:
        for target in targets:
            if target in FORMULAS:
                raise ValueError(f"{target} is priced twice")
            FORMULAS[target] = formula
        return formula

    return register


def _shape(arg: Any) -> tuple[int, ...]:
    """Sizes of a node's tensor, symbolic ones by their hint."""
    value = arg.meta["val"]
    assert isinstance(value, Tensor)
    return tuple(hint(size) for size in value.shape)


def _elements(*args: Any) -> int:
    return sum(prod(_shape(arg)) for arg in args)


def _tensors(node: Node) -> list[Node]:
    """What a node reads, without symbolic integers."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)


def is_convolution(op: Node) -> bool:
    """Whether an ATen node is a convolution, and none that is transposed."""
    return op.target in CONVOLUTIONS or (op.target is aten.convolution.default and not op.args[6])


@_prices(*CONVOLUTIONS)
def _conv(node: Node) -> tuple[Op, ...]:
    return conv_ops(*map(_shape, (*node.args[:2], node)))


@_prices(*TRANSPOSED)
def _conv_transpose(node: Node) -> tuple[Op, ...]:
    groups: Any = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    x, weight, out = map(_shape, (*node.args[:2], node))
    return transposed_ops(x, weight, out, groups)


@_prices(aten.convolution.default)
def _convolution(node: Node) -> tuple[Op, ...]:
    """Any of them: its flag tells whether it is transposed."""
    groups: Any = node.args[8]
    x, weight, out = map(_shape, (*node.args[:2], node))
    return conv_ops(x, weight, out) if is_convolution(node) else transposed_ops(x, weight, out, groups)


@_prices(
    aten.mm.default,
    aten.mv.default,
    aten.dot.default,
    aten.vdot.default,
    aten.bmm.default,
    aten.matmul.default,
    aten.linalg_matmul.default,
    aten._int_mm.default,
)
def _matmul(node: Node) -> tuple[Op, ...]:
    """[..., i, k] @ [..., k, j]; a batch axis on both sides makes it batched."""
    x, y = (_shape(arg) for arg in node.args[:2])
    k = x[-1]
    rows = x[-2] if len(x) > 1 else 1
    columns = y[-1] if len(y) > 1 else 1
    batched = max(len(x), len(y)) > 2
    folded = batched and min(len(x), len(y)) <= 2 and len(x) > len(y)  # [..., i, k] @ [k, j] runs as one mm
    if folded:
        rows = prod(x[:-1])
    family = "bmm" if batched and not folded else "mm"
    return (Op(family, prod(_shape(node)) * k, k, columns, rows, _elements(*node.args[:2], node)),)


@_prices(aten.linear.default)
def _linear(node: Node) -> tuple[Op, ...]:
    x, weight = node.args[:2]
    *lead, k = _shape(x)
    columns = _shape(weight)[0] if len(_shape(weight)) == 2 else 1
    return (Op("mm", prod(_shape(node)) * k, k, columns, prod(lead), _elements(x, weight, node)),)


@_prices(aten.addmm.default, aten.baddbmm.default)
def _addmm(node: Node) -> tuple[Op, ...]:
    """A bias comes for nothing; what is as large as the result is copied there first, and takes an addition's time."""
    x, y = (_shape(arg) for arg in node.args[1:3])
    whole = prod(_shape(node))
    product = Op("mm" if len(x) == 2 else "bmm", whole * x[-1], x[-1], y[-1], x[-2], _elements(*node.args[1:3], node))
    added = Op("add", 0, 1, 1, whole, 3 * whole)
    return (product,) if _elements(node.args[0]) < whole else (product, added)


@_prices(aten.addmv.default, aten.addbmm.default)
def _add_product(node: Node) -> tuple[Op, ...]:
    """[i, k] @ [k], or [b, i, k] @ [b, k, j] summed over b, which runs as one product."""
    x, y = node.args[1:3]
    reduce = _shape(x)[-1] * (_shape(x)[0] if len(_shape(x)) == 3 else 1)
    columns = _shape(y)[2] if len(_shape(y)) == 3 else 1
    rows = _shape(x)[-2]
    return (Op("mm", rows * columns * reduce, reduce, columns, rows, _elements(x, y, node)),)


@_prices(aten.inner.default)
def _inner(node: Node) -> tuple[Op, ...]:
    """[.., k] @ [.., k] of all leading dims; with a scalar a product position by position."""
    x, y = node.args[:2]
    if not _shape(x) or not _shape(y):
        return _product(node)
    (*left, k), (*right, _) = _shape(x), _shape(y)
    return (Op("mm", _elements(node) * k, k, prod(right), prod(left), _elements(x, y, node)),)


@_prices(aten.chain_matmul.default, aten.linalg_multi_dot.default)
def _chain(node: Node) -> tuple[Op, ...]:
    """A product of matrices in the order of fewest multiply-adds, which is what torch takes."""
    matrices: Any = node.args[0]
    shapes = [_shape(matrix) for matrix in matrices]
    shapes[0] = (1, *shapes[0]) if len(shapes[0]) == 1 else shapes[0]
    sizes = [shapes[0][0], *(shape[0] for shape in shapes[1:]), shapes[-1][1] if len(shapes[-1]) == 2 else 1]
    best: dict[tuple[int, int], tuple[Op, ...]] = {(n, n + 1): () for n in range(len(shapes))}
    for length in range(2, len(shapes) + 1):
        for start in range(len(shapes) - length + 1):
            end = start + length
            ways = [
                (*best[start, cut], *best[cut, end], _gemm(sizes[start], sizes[cut], sizes[end]))
                for cut in range(start + 1, end)
            ]
            best[start, end] = min(ways, key=lambda ops: sum(op.macs for op in ops))
    return best[0, len(shapes)]


def _gemm(rows: int, reduce: int, columns: int) -> Op:
    """[rows, reduce] @ [reduce, columns]."""
    elements = rows * reduce + reduce * columns + rows * columns
    return Op("mm", rows * reduce * columns, reduce, columns, rows, elements)


@_prices(aten.bilinear.default)
def _bilinear(node: Node) -> tuple[Op, ...]:
    """For every output: the left by its matrix, multiplied by the right and summed."""
    x, y, weight = node.args[:3]
    *lead, a = _shape(x)
    columns, _, b = _shape(weight)
    rows = prod(lead)
    elements = columns * _elements(x, y) + _elements(weight, node)
    return (Op("mm", rows * columns * a * b, a, b, rows, elements), Op("mul", rows * columns * b, 1, 1, rows, elements))


_prices(aten.scaled_dot_product_attention.default)(lambda node: attention_ops(*map(_shape, node.args[:3])))


@_prices(aten._native_multi_head_attention.default, aten._transformer_encoder_layer_fwd.default)
def _fused_attention(node: Node) -> tuple[Op, ...]:
    """What attention in eval mode is without gradients: one op with all its projections."""
    layer = node.target is aten._transformer_encoder_layer_fwd.default
    sources: Any = node.args[:1] * 3 if layer else node.args[:3]
    heads, widths = node.args[2 if layer else 4], _shape(node.args[14])[:1] if layer else ()
    return projected_attention_ops(*map(_shape, sources), int(heads), *widths)  # type: ignore[arg-type]


@_prices(aten.tensordot.default)
def _tensordot(node: Node) -> tuple[Op, ...]:
    x, y = node.args[:2]
    dims: Any = node.args[2]
    k = prod(_shape(x)[dim] for dim in dims)
    rows = prod(_shape(x)) // max(1, k)
    columns = prod(_shape(y)) // max(1, k)
    return (Op("mm", rows * columns * k, k, columns, rows, _elements(x, y, node)),)


@_prices(aten.einsum.default)
def _einsum(node: Node) -> tuple[Op, ...]:
    equation, tensors = node.args[:2]
    assert isinstance(equation, str) and isinstance(tensors, (list, tuple))
    return einsum_ops(equation, [_shape(tensor) for tensor in tensors], _elements(node))


@_prices(
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.mul_.Tensor,
    aten.mul_.Scalar,
    aten.multiply.Tensor,
    aten.multiply.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.div_.Tensor,
    aten.div_.Scalar,
    aten.true_divide.Tensor,
    aten.true_divide.Scalar,
    aten.neg.default,
    aten.neg_.default,
    aten.negative.default,
)
def _mul(node: Node) -> tuple[Op, ...]:
    """Tensor by tensor: one multiply for each output element; a number is not counted as a multiply-add."""
    tensors = _tensors(node)
    macs = _elements(node) if len(tensors) == 2 else 0
    return (Op("mul", macs, 1, 1, _elements(node), _elements(*tensors, node)),)


@_prices(aten.kron.default, aten.outer.default, aten.ger.default, aten.addr.default, aten.addcmul.default)
def _product(node: Node) -> tuple[Op, ...]:
    """One multiply for each output element."""
    return (Op("mul", _elements(node), 1, 1, _elements(node), _elements(*_tensors(node), node)),)


@_prices(aten.linalg_vecdot.default)
def _vecdot(node: Node) -> tuple[Op, ...]:
    """A product, and a sum over one dim."""
    x, y = node.args[:2]
    macs = max(_elements(x), _elements(y))
    return (Op("mul", macs, 1, 1, macs, _elements(x, y) + macs), Op("sum", 0, 1, macs, _elements(node), macs))


@_prices(
    aten.add.Tensor,
    aten.add.Scalar,
    aten.add_.Tensor,
    aten.add_.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.sub_.Tensor,
    aten.sub_.Scalar,
    aten.rsub.Tensor,
    aten.rsub.Scalar,
)
def _add(node: Node) -> tuple[Op, ...]:
    return (Op("add", 0, 1, 1, _elements(node), _elements(*_tensors(node), node)),)


@_prices(aten.batch_norm.default)
def _batch_norm(node: Node) -> tuple[Op, ...]:
    """One pass over the activation, two where the statistics are the batch's."""
    passes = 2 if node.args[5] else 1
    return (Op("add", 0, 1, 1, _elements(node), (1 + passes) * _elements(node)),)


@_prices(aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default)
def _sum(node: Node) -> tuple[Op, ...]:
    """Elements in a row are those behind the last summed dim, or the summed ones where that is the last."""
    source: Any = node.args[0]
    shape = _shape(source)
    given: Any = node.args[1] if len(node.args) > 1 else None
    last = max((dim % len(shape) for dim in given), default=len(shape) - 1) if given else len(shape) - 1
    run = prod(shape[last + 1 :]) if last < len(shape) - 1 else prod(shape[-1:])
    return (Op("sum", 0, 1, run, _elements(node), _elements(source, node)),)


@_prices(
    aten.clone.default,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.flip.default,
    aten.cat.default,
    aten.concat.default,
    aten.stack.default,
    aten.repeat.default,
    aten.tile.default,
    aten.repeat_interleave.self_int,
    aten.diag_embed.default,
    aten.lift_fresh_copy.default,
)
def _copy(node: Node) -> tuple[Op, ...]:
    return (Op("copy", 0, 1, _run(node), _elements(node), 2 * _elements(node)),)


def _run(node: Node) -> int:
    """Elements in a row that a copy reads in the order in which it writes them."""
    value, source = node.meta["val"], node.all_input_nodes[0].meta["val"]
    if value.shape == source.shape:
        dims = sorted(range(value.ndim), key=lambda d: (hint(value.stride(d)), -d))
    else:  # read in the order of its dims
        value, dims = source, list(reversed(range(source.ndim)))
    run = 1
    for dim in dims:
        size = hint(value.shape[dim])
        if size == 1:
            continue
        if hint(source.stride(dim)) != run:
            break
        run *= size
    return run


@_prices(aten.reshape.default, aten.contiguous.default, aten.flatten.using_ints, aten.ravel.default)
def _maybe_copy(node: Node) -> tuple[Op, ...]:
    """A reshape or `contiguous` copies where its result does not share the storage of its input."""
    return () if _memory(node.args[0]) == _memory(node) else _copy(node)


def _memory(node: Any) -> object:
    """A key that the tensors of two nodes share exactly if they share memory."""
    return node.meta["memory"] if "memory" in node.meta else node.meta["val"].untyped_storage()._cdata


@_prices(aten.eye.default, aten.ones.default, aten.zeros.default, aten.full.default)
def _constant(node: Node) -> tuple[Op, ...]:
    return (Op("add", 0, 1, 1, _elements(node), _elements(node)),)


@_prices(
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
)
def _nearest(node: Node) -> tuple[Op, ...]:
    """A copy, in whose rows every element is looked up."""
    return (Op("copy", 0, 1, 1, _elements(node), 2 * _elements(node)),)


_NEIGHBOURS = {
    aten.upsample_linear1d.vec: 2,
    aten.upsample_bilinear2d.vec: 4,
    aten.upsample_trilinear3d.vec: 8,
    aten.upsample_bicubic2d.vec: 16,
}


@_prices(*_NEIGHBOURS)
def _resize(node: Node) -> tuple[Op, ...]:
    """Every output element is a sum over its neighbours, and reads them."""
    count, out = _NEIGHBOURS[node.target], _elements(node)
    return (Op("mul", count * out, 1, 1, out, (count + 1) * out),)


@_prices(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def _avg_pool(node: Node) -> tuple[Op, ...]:
    """Every output element reads its window."""
    kernel: Any = node.args[1]
    n = int(str(node.target).partition("d.")[0][-1])
    window = prod(kernel) if len(kernel) == n else kernel[0] ** n
    return (_reads(node, window),)


@_prices(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def _adaptive_avg_pool(node: Node) -> tuple[Op, ...]:
    """Every output element reads its part of the input; parts overlap by one position at most."""
    sizes: Any = node.args[1]
    axes = zip(_shape(node.args[0])[-len(sizes) :], _shape(node)[-len(sizes) :], strict=True)
    return (_reads(node, prod(-(-size // out) for size, out in axes)),)


def _reads(node: Node, window: int) -> Op:
    """A sum of `window` input elements for each output element."""
    return Op("add", 0, 1, 1, _elements(node), (window + 1) * _elements(node))
