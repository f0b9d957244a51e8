"""What the table measures: a registry of layers and models, with the orders that one would write by hand.

Names are paths, so that a regular expression picks rows: `conv/tt/factorized/64@56/.25`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import linears, models, orders
from benchmarks.orders import Bind, over
from tests.models import factorized_conv, factorized_resnet18, plain_resnet18


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: a path: group, factorization, form, size, rank.
        make: a new module; called right after seeding.
        shape: of x.
        small: a shape of x that tests can afford.
        orders: hand-written ones by name.
        dense: what a dense layer of that size would do, for information.
        fast: what stands in for `ce_fx.optimize(module)`; None for just that.
        idle: nothing is to be gained here, only not to be lost.
        quick: part of `--quick`.
        eager_only: Inductor is not asked (its compilation takes minutes).
        data: x is what a network is fed, so that training computes no gradient for it; that of a layer needs one.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    small: tuple[int, ...]
    orders: Mapping[str, Bind] = field(default_factory=dict)
    dense: Bind | None = None
    fast: Callable[[Any], nn.Module] | None = None
    idle: bool = False
    quick: bool = False
    eager_only: bool = False
    data: bool = False

    @property
    def group(self) -> str:
        """The first part of the name."""
        return self.name.split("/", 1)[0]

    def module(self, seed: int = 0) -> nn.Module:
        """A new module, always the same for a seed."""
        torch.manual_seed(seed)
        return self.make()

    def input(self, small: bool = False) -> Tensor:
        """x, always the same."""
        return torch.randn(self.small if small else self.shape, generator=torch.Generator().manual_seed(1))


SIZES = ((64, 56), (128, 28), (256, 14), (512, 7))
RANKS = (0.1, 0.25, 0.5, 1.0)
FORMS = ("factorized", "reconstructed")
BATCH = 8
QUICK_CONVS = {
    ("cp", "factorized", 64),
    ("cp", "factorized", 512),
    ("tucker", "factorized", 256),
    ("tucker", "factorized", 512),
    ("tt", "factorized", 64),
    ("tt", "factorized", 256),
    ("tt", "factorized", 512),
    ("tt", "reconstructed", 512),
}


def short(rank: float) -> str:
    """.25 for 0.25, 1 for 1."""
    return f"{rank:g}".lstrip("0")


def convolutions(ranks: Iterable[float] = RANKS) -> list[Case]:
    """tensorly-torch's 3x3 `FactorizedConv`, as many channels out as in."""
    return [
        Case(
            f"conv/{kind}/{form}/{channels}@{pixels}/{short(rank)}",
            partial(factorized_conv, channels, channels, 1, kind, rank, form),
            (BATCH, channels, pixels, pixels),
            (1, channels, 5, 4),
            orders.CONV_ORDERS[kind],
            orders.conv_dense,
            quick=rank == 0.25 and (kind, form, channels) in QUICK_CONVS,
        )
        for rank in ranks
        for kind in ("cp", "tucker", "tt")
        for form in FORMS
        for channels, pixels in SIZES
    ]


MODES = (8, 16, 8)


def _linear(kind: str, rank: float) -> nn.Module:
    import tltorch

    return tltorch.FactorizedLinear(MODES, MODES, bias=False, factorization=kind, rank=rank)


def _head(rank: float) -> nn.Module:
    import tltorch

    return tltorch.TRL((256, 7, 7), (100,), factorization="tucker", rank=rank)


def layers() -> list[Case]:
    """Factorised linear layers from 1024 to 1024, and a Tucker regression head after a 7x7 feature map."""
    found = [
        Case(
            f"linear/{kind}/factorized/1024/{short(rank)}",
            partial(_linear, kind, rank),
            (64, 1024),
            (2, 1024),
            linears.LINEAR_ORDERS[kind],
            linears.dense,
            quick=kind == "blocktt",
        )
        # A CP of a tenth would have rank 1638, and its rebuilt form 0.9 GB on the way.
        for kind, rank in (("cp", 0.01), ("tucker", 0.1), ("blocktt", 0.1))
    ]
    head = Case(
        "head/tucker/256@7/.1",
        partial(_head, 0.1),
        (64, 256, 7, 7),
        (2, 256, 7, 7),
        linears.HEAD_ORDERS,
        linears.head_dense,
        quick=True,
    )
    return [*found, head]


def written_out() -> list[Case]:
    """Kronecker and block-term convolutions, and decomposed convolutions as plain `nn.Conv2d` chains."""
    x, small = (BATCH, 128, 28, 28), (1, 128, 5, 4)
    kronecker = {"one by one": models.kronecker_one_by_one, "all at once": models.kronecker_all_at_once}
    blocks = {"grouped": models.block_term_grouped, "rebuilt": models.block_term_rebuilt}
    return [
        Case(
            "kronecker/sum of 4/128@28",
            partial(models.KroneckerConv, (16, 16), (8, 8), 4),
            x,
            small,
            {name: over(order) for name, order in kronecker.items()},
        ),
        Case(
            "block-term/8 blocks of 8/128@28",
            partial(models.BlockTermConv, 128, 8, 8),
            x,
            small,
            {name: over(order) for name, order in blocks.items()},
        ),
        Case("chain/cp/128@28", partial(models.cp_chain, 128, 64), x, small, {"merged": over(models.cp_chain_merged)}),
        Case("chain/tucker-2/128@28", partial(models.tucker2_chain, 128, 64), x, small, idle=True),
    ]


# Strings of layers as in arXiv 2401.03384 (table of factorised convolutions, and their reshaped forms with two modes);
# x and factors in an order in which left to right stays affordable, unless the name says so.
STRINGS: dict[str, tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    "cp": ("bshw,rs,rh,rw,rt->bthw|hw", (8, 64, 28, 28), ((32, 64), (32, 3), (32, 3), (32, 64))),
    "cp, outputs first": ("bshw,rt,rs,rh,rw->bthw|hw", (2, 16, 14, 14), ((8, 16), (8, 16), (8, 3), (8, 3))),
    "tucker": ("bshw,us,vuhw,vt->bthw|hw", (8, 64, 28, 28), ((32, 64), (32, 32, 3, 3), (32, 64))),
    "tt": ("bshw,sr,rhu,uwv,vt->bthw|hw", (8, 64, 28, 28), ((64, 16), (16, 3, 16), (16, 3, 16), (16, 64))),
    "tr": (
        "bshw,qsr,rhu,uwv,vtq->bthw|hw",
        (4, 32, 14, 14),
        ((6, 32, 6), (6, 3, 6), (6, 3, 6), (6, 32, 6)),
    ),
    "reshaped cp": (
        "b(s1)(s2)hw,r(s1)(t1),r(s2)(t2),rhw->b(t1)(t2)hw|hw",
        (4, 8, 8, 14, 14),
        ((16, 8, 8), (16, 8, 8), (16, 3, 3)),
    ),
    "reshaped tucker": (
        "b(s1)(s2)hw,(r1)(s1)(t1),(r2)(s2)(t2),(r1)(r2)hw->b(t1)(t2)hw|hw",
        (4, 8, 8, 14, 14),
        ((8, 8, 8), (8, 8, 8), (8, 8, 3, 3)),
    ),
    "reshaped tt": (
        "b(s1)(s2)hw,(r1)(s1)(t1),(r1)(r2)(s2)(t2),(r2)hw->b(t1)(t2)hw|hw",
        (4, 8, 8, 14, 14),
        ((8, 8, 8), (8, 8, 8, 8), (8, 3, 3)),
    ),
}


def strings() -> list[Case]:
    """conv_einsum strings from left to right, against `optimize="auto"`."""
    return [
        Case(
            f"string/{name}",
            partial(models.Einsum, string, factors),
            shape,
            (1, *shape[1:-2], 5, 4),
            fast=partial(models.with_order, optimize="auto"),
            eager_only=True,
        )
        for name, (string, shape, factors) in STRINGS.items()
    ]


IN_MODELS = {"cp": orders.cp_merged, "tucker": orders.tucker_core, "tt": orders.tt_strips}


def whole_models() -> list[Case]:
    """ResNet-18 with every 3x3 convolution factorised; and models in which nothing is to be done."""
    x, small = (4, 3, 224, 224), (1, 3, 32, 32)
    found = [
        Case(
            f"resnet18/{kind}/{form}/.25",
            partial(factorized_resnet18, kind, 0.25, form),
            x,
            small,
            {f"every layer {order.__name__}": partial(models.by_hand, order=order)},
            quick=(kind, form) == ("tt", "factorized"),
            data=True,
        )
        for kind, order in IN_MODELS.items()
        for form in FORMS
    ]
    block = partial(nn.TransformerEncoderLayer, 256, 8, 1024, dropout=0.0, batch_first=True)
    return [
        *found,
        Case("resnet18/plain", plain_resnet18, x, small, idle=True, quick=True, data=True),
        Case("transformer block/256", block, (8, 128, 256), (1, 4, 256), idle=True, quick=True),
    ]


def cases(ranks: Iterable[float] = RANKS) -> list[Case]:
    """The whole table, in its order."""
    return [*convolutions(ranks), *layers(), *written_out(), *strings(), *whole_models()]


def regex(only: str | None) -> re.Pattern[str]:
    """What `--only` asks for; everything where it is left out.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        return re.compile(only or "")
    except re.error as error:
        raise ValueError(f"--only {only!r} is no regular expression: {error}") from None


def chosen(found: Iterable[Case], only: str | None = None, quick: bool = False) -> list[Case]:
    """The cases whose name a regular expression finds, and of them the quick ones.

    Raises:
        ValueError: the expression is bad, or finds nothing.
    """
    pattern = regex(only)
    names = [case for case in found if pattern.search(case.name) and (case.quick or not quick)]
    if not names:
        hint = "the names of all cases are printed by --list" + (", fewer of them are quick" if quick else "")
        raise ValueError(f"--only {only!r} finds no case; {hint}")
    return names


def largest_difference(case: Case, bind: Bind) -> float:
    """How far a hand-written order is from its layer, in float64 on a small x, relative to the largest output."""
    module, x = case.module().double().eval(), case.input(small=True).double()
    with torch.no_grad():
        expected = module(x)
        return float((bind(module)(x) - expected).abs().max() / expected.abs().max())
