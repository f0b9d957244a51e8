"""Sums of factorised terms: Kronecker, block terms, CP term by term; a tensor-train linear layer as one einsum."""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import models
from benchmarks.blocks.block import Bind, Block, over


class TensorBlockTerms(nn.Module):
    """A 3x3 kernel as a sum of Tucker terms over split channels (block-term, Ye et al., arXiv 1712.05134)."""

    def __init__(self, modes: tuple[int, int], terms: int, rank: int) -> None:
        super().__init__()
        a, b = modes
        self.a = nn.Parameter(torch.randn(terms, a, rank, a) / a**0.5)
        self.b = nn.Parameter(torch.randn(terms, b, rank, b) / b**0.5)
        self.space = nn.Parameter(torch.randn(terms, rank, 3, 3) / 3)
        self.core = nn.Parameter(torch.randn(terms, rank, rank, rank) / (terms * rank**3) ** 0.5)

    def kernel(self) -> Tensor:
        """Term by term."""
        total: Any = 0
        for a, b, space, core in zip(self.a, self.b, self.space, self.core, strict=True):
            total = total + torch.einsum("xrp, yqs, khw, rqk -> xypshw", a, b, space, core)
        outs, ins = self.a.shape[1] * self.b.shape[1], self.a.shape[3] * self.b.shape[3]
        return total.reshape(outs, ins, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """One convolution."""
        return F.conv2d(x, self.kernel(), padding=1)


def block_terms_at_once(layer: TensorBlockTerms, x: Tensor) -> Tensor:
    """All terms as one product, by way of small intermediates."""
    middle = torch.einsum("nkhw,nrqk->nrqhw", layer.space, layer.core)
    left = torch.einsum("nxrp,nrqhw->nqxphw", layer.a, middle)
    weight = torch.einsum("nqxphw,nyqs->xypshw", left, layer.b)
    return F.conv2d(x, weight.reshape(x.shape[1], x.shape[1], 3, 3), padding=1)


class CPTerms(nn.Module):
    """A kernel as a loop over rank-1 terms, nine nodes each (as TedNet writes its CP convolution).

    Args:
        channels: in and out.
        rank: terms.
        stacked: the vectors are rows of four parameters, otherwise each is a parameter.
    """

    def __init__(self, channels: int, rank: int, stacked: bool) -> None:
        super().__init__()
        sizes = {"out": channels, "ins": channels, "rows": 3, "columns": 3}
        scale = (rank * 9 * channels) ** -0.125
        self.stacked = stacked
        for name, size in sizes.items():
            vectors = torch.randn(rank, size) * scale
            held = nn.Parameter(vectors) if stacked else nn.ParameterList(map(nn.Parameter, vectors))
            setattr(self, name, held)

    def kernel(self) -> Tensor:
        """Term by term: two outer products, and theirs."""
        total: Any = 0
        for number in range(len(self.out)):
            out, ins = self.out[number].unsqueeze(-1), self.ins[number].unsqueeze(-1)
            rows, columns = self.rows[number].unsqueeze(-1), self.columns[number].unsqueeze(-1)
            channels = torch.tensordot(out, ins, dims=([-1], [-1])).unsqueeze(-1)
            space = torch.tensordot(rows, columns, dims=([-1], [-1])).unsqueeze(-1)
            total += torch.tensordot(channels, space, dims=([-1], [-1]))
        return total

    def forward(self, x: Tensor) -> Tensor:
        """One convolution."""
        return F.conv2d(x, self.kernel(), padding=1)


def _rows(vectors: Any) -> Tensor:
    return vectors if isinstance(vectors, Tensor) else torch.stack(list(vectors))


def cp_depthwise(layer: CPTerms, x: Tensor) -> Tensor:
    """1x1, a depthwise 3x3, 1x1."""
    out, ins, rows, columns = map(_rows, (layer.out, layer.ins, layer.rows, layer.columns))
    y = F.conv2d(x, ins[:, :, None, None])
    y = F.conv2d(y, (rows[:, :, None] * columns[:, None])[:, None], padding=1, groups=len(y[0]))
    return F.conv2d(y, out.t()[:, :, None, None])


def cp_rebuilt(layer: CPTerms, x: Tensor) -> Tensor:
    """The kernel as one einsum."""
    out, ins, rows, columns = map(_rows, (layer.out, layer.ins, layer.rows, layer.columns))
    space = (rows[:, :, None] * columns[:, None]).flatten(1)
    left = (out[:, :, None] * ins[:, None]).flatten(1)
    return F.conv2d(x, (left.t() @ space).view(out.shape[1], ins.shape[1], 3, 3), padding=1)


class TTLinear(nn.Module):
    """A linear layer with a tensor-train weight, as one einsum over the cores and x, bias added."""

    def __init__(self, modes: tuple[int, int, int], rank: int) -> None:
        super().__init__()
        self.modes = modes
        a, b, c = modes
        shapes: list[tuple[int, ...]] = [(a, a, rank), (rank, b, b, rank), (rank, c, c)]
        cores = (torch.randn(shape) * (mode * rank**0.67) ** -0.5 for shape, mode in zip(shapes, modes, strict=True))
        self.cores = nn.ParameterList(map(nn.Parameter, cores))
        self.bias = nn.Parameter(torch.randn(modes[0] * modes[1] * modes[2]))

    def forward(self, x: Tensor) -> Tensor:
        """From left to right, as where opt_einsum is not installed, the weight is built first."""
        y = torch.einsum("apr, rbqs, sco, ... abc -> ... pqo", *self.cores, x.unflatten(-1, self.modes))
        return y.flatten(-3) + self.bias


def tt_linear_chained(layer: TTLinear, x: Tensor) -> Tensor:
    """One core after the other on x, each as one matrix product."""
    first, second, third = layer.cores
    a, b, c = layer.modes
    rank = first.shape[-1]
    y = x.reshape(-1, a, b * c).transpose(1, 2) @ first.reshape(a, -1)
    y = y.view(-1, b, c, a, rank).permute(0, 2, 3, 4, 1).reshape(-1, rank * b) @ second.reshape(rank * b, -1)
    y = y.view(-1, c, a, b, rank).permute(0, 2, 3, 4, 1).reshape(-1, rank * c) @ third.reshape(rank * c, -1)
    return y.view(*x.shape) + layer.bias


def tt_linear_rebuilt(layer: TTLinear, x: Tensor) -> Tensor:
    """The matrix, then one product."""
    first, second, third = layer.cores
    matrix = torch.einsum("apr,rbqs->abpqs", first, second)
    matrix = torch.einsum("abpqs,sco->abcpqo", matrix, third)
    return x @ matrix.reshape(x.shape[-1], -1) + layer.bias


def factorised() -> list[Block]:
    """Sums of factorised terms, and a factorised linear layer."""
    x, small = ((8, 128, 28, 28),), ((2, 8, 6, 5),)
    kronecker: dict[str, Bind] = {
        "one by one": over(models.kronecker_one_by_one),
        "all at once": over(models.kronecker_all_at_once),
    }
    terms: dict[str, Bind] = {"grouped": over(models.block_term_grouped), "rebuilt": over(models.block_term_rebuilt)}
    cp: dict[str, Bind] = {"depthwise": over(cp_depthwise), "rebuilt": over(cp_rebuilt)}
    linear: dict[str, Bind] = {"chained": over(tt_linear_chained), "rebuilt": over(tt_linear_rebuilt)}
    return [
        Block("factorised/kronecker, sum of 4", _kronecker, x, small, kronecker),
        Block("factorised/block terms, 8 Tucker-2", _block_terms, x, small, terms),
        Block("factorised/block terms, 4 built", _built, x, small, {"at once": over(block_terms_at_once)}),
        Block("factorised/CP loop, vectors", partial(_cp, False), x, small, cp),
        Block("factorised/CP loop, rows", partial(_cp, True), x, small, cp),
        Block("factorised/TT linear, n-ary einsum", _tt_linear, ((4, 256, 1024),), ((2, 3, 12),), linear),
    ]


def _kronecker(small: bool) -> nn.Module:
    return models.KroneckerConv((2, 2), (4, 4), 2) if small else models.KroneckerConv((16, 16), (8, 8), 4)


def _block_terms(small: bool) -> nn.Module:
    return models.BlockTermConv(8, 3, 2) if small else models.BlockTermConv(128, 8, 8)


def _built(small: bool) -> nn.Module:
    return TensorBlockTerms((2, 4), 2, 2) if small else TensorBlockTerms((8, 16), 4, 4)


def _cp(stacked: bool, small: bool) -> nn.Module:
    return CPTerms(8, 3, stacked) if small else CPTerms(128, 16, stacked)


def _tt_linear(small: bool) -> nn.Module:
    return TTLinear((2, 3, 2), 2) if small else TTLinear((8, 16, 8), 4)
