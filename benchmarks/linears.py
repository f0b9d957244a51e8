"""Hand-written orders of the factorised linear layers and the Tucker regression head of tensorly-torch.

Letters: b batch, i and o input and output modes, r the rank. A linear layer's factors come output modes first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.orders import Bind, Run, factors, over


def rebuilt(layer: Any, x: Tensor) -> Tensor:
    """The matrix by tensorly-torch itself, then one product."""
    return F.linear(x, layer.weight.to_matrix())


def dense(layer: Any) -> Run:
    """The product with a matrix that was built once."""
    with torch.no_grad():
        matrix = layer.weight.to_matrix().contiguous()
    return lambda x: F.linear(x, matrix)


def _split(layer: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Output and input factors."""
    all_factors = factors(layer)
    outs = len(layer.out_tensorized_features)
    return all_factors[:outs], all_factors[outs:]


def _khatri_rao(matrices: list[Tensor]) -> Tensor:
    """Matrices (i_k, r) -> (prod i_k, r)."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = (result[:, None] * matrix).flatten(0, 1)
    return result


def cp_two_products(layer: Any, x: Tensor) -> Tensor:
    """Both sides as Khatri-Rao matrices (1024, r): x.I, then .O."""
    outs, ins = _split(layer)
    return (x @ _khatri_rao([*ins[:-1], ins[-1] * layer.weight.weights])) @ _khatri_rao(outs).t()


def cp_rebuilt(layer: Any, x: Tensor) -> Tensor:
    """O.I^T as one matrix (1024, 1024), then one product."""
    outs, ins = _split(layer)
    return F.linear(x, (_khatri_rao(outs) * layer.weight.weights) @ _khatri_rao(ins).t())


def tucker_inwards(layer: Any, x: Tensor) -> Tensor:
    """The input factors on x mode by mode, then the core, then the output factors."""
    outs, ins = _split(layer)
    y = x.unflatten(1, [f.shape[0] for f in ins])
    for factor in ins:  # (b, i1, i2, ..) -> (b, i2, .., r1)
        y = torch.tensordot(y, factor, dims=([1], [0]))
    core = layer.weight.core
    y = y.flatten(1) @ core.flatten(len(outs)).flatten(0, len(outs) - 1).t()
    y = y.unflatten(1, [f.shape[1] for f in outs])
    for factor in outs:
        y = torch.tensordot(y, factor, dims=([1], [1]))
    return y.flatten(1)


def tucker_rebuilt(layer: Any, x: Tensor) -> Tensor:
    """The matrix mode by mode, then one product."""
    weight = layer.weight.core
    for factor in factors(layer):  # (r1, r2, ..) -> (r2, .., o1)
        weight = torch.tensordot(weight, factor, dims=([0], [1]))
    return F.linear(x, weight.reshape(layer.out_features, layer.in_features))


def blocktt_sweep(layer: Any, x: Tensor) -> Tensor:
    """Core by core, from left to right: (b, r, i1, i2, ..) -> (b, i2, .., o1, r')."""
    cores = factors(layer)  # (r, o, i, r')
    y = x.unflatten(1, [core.shape[2] for core in cores])[:, None]
    for core in cores:
        y = torch.tensordot(y, core, dims=([1, 2], [0, 2]))  # (b, rest, o, r')
        y = y.movedim(-1, 1)
    return y.flatten(1)


def blocktt_halves(layer: Any, x: Tensor) -> Tensor:
    """The first core on x, the others merged into one."""
    first, *others = factors(layer)
    right = others[0]
    for core in others[1:]:
        right = torch.einsum("aoib,bpjc->aopijc", right, core).flatten(3, 4).flatten(1, 2)
    b, i1 = x.shape[0], first.shape[2]
    y = x.view(b, i1, -1).transpose(1, 2).flatten(0, 1) @ first[0].transpose(0, 1).flatten(1)  # (b i2, o1 r)
    o1, r = first.shape[1], first.shape[3]
    y = y.view(b, -1, o1, r).permute(0, 2, 3, 1).reshape(b * o1, -1)  # (b o1, r i2)
    return (y @ right[..., 0].permute(0, 2, 1).flatten(0, 1)).view(b, -1)


def blocktt_rebuilt(layer: Any, x: Tensor) -> Tensor:
    """The matrix core by core, then one product."""
    first, *others = factors(layer)
    matrix = first[0]  # (o, i, r)
    for core in others:
        matrix = torch.einsum("oir,rpjq->opijq", matrix, core).flatten(2, 3).flatten(0, 1)
    return F.linear(x, matrix[..., 0])


LINEAR_ORDERS: dict[str, dict[str, Bind]] = {
    "cp": {"two products": over(cp_two_products), "rebuilt": over(cp_rebuilt), "to_matrix": over(rebuilt)},
    "tucker": {"inwards": over(tucker_inwards), "rebuilt": over(tucker_rebuilt), "to_matrix": over(rebuilt)},
    "blocktt": {
        "sweep": over(blocktt_sweep),
        "halves": over(blocktt_halves),
        "rebuilt": over(blocktt_rebuilt),
        "to_matrix": over(rebuilt),
    },
}


def head_projected(layer: Any, x: Tensor) -> Tensor:
    """Three factors on x, then the core, then the output factor."""
    c, h, w, o = factors(layer)
    y = torch.einsum("bchw,hp->bcpw", x, h)
    y = torch.einsum("bcpw,wq->bcpq", y, w)
    y = torch.tensordot(y, c, dims=([1], [0]))  # (b, p, q, r)
    y = torch.einsum("bpqr,rpqs->bs", y, layer.weight.core)
    return y @ o.t()


def head_spatial_first(layer: Any, x: Tensor) -> Tensor:
    """Both spatial factors as one matrix (49, p q): two products on x, two small ones."""
    c, h, w, o = factors(layer)
    spatial = (h[:, None, :, None] * w[None, :, None, :]).flatten(2).flatten(0, 1)
    y = x.flatten(2) @ spatial  # (b, c, p q)
    y = torch.matmul(c.t(), y).flatten(1)  # (b, r p q)
    return (y @ layer.weight.core.flatten(0, 2)) @ o.t()


def head_rebuilt(layer: Any, x: Tensor) -> Tensor:
    """The whole weight, smallest modes first, then one product."""
    c, h, w, o = factors(layer)
    weight = torch.einsum("rpqs,hp->rhqs", layer.weight.core, h)
    weight = torch.einsum("rhqs,wq->rhws", weight, w)
    weight = torch.einsum("rhws,os->rhwo", weight, o)
    return x.flatten(1) @ torch.tensordot(c, weight, dims=([1], [0])).flatten(0, 2)


def head_dense(layer: Any) -> Run:
    """The product with a weight that was built once."""
    with torch.no_grad():
        weight = layer.weight.to_tensor().flatten(0, 2)
    return lambda x: x.flatten(1) @ weight


HEAD_ORDERS: dict[str, Bind] = {
    "projected": over(head_projected),
    "spatial first": over(head_spatial_first),
    "rebuilt": over(head_rebuilt),
}
