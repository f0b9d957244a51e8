"""From a form and a layer's size to a string and the shapes of its factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import TypeAlias

from ce_fx.algebra.parser import split
from ce_fx.nn.errors import LayerError
from ce_fx.nn.forms import CONV_LETTERS, find_form, form_string
from ce_fx.nn.ranks import (
    balanced_factors,
    budget_of,
    count_weights,
    equal_ranks,
    rank_caps,
    ranks_for_rate,
    too_large,
    too_small,
)

Rank: TypeAlias = int | Sequence[int]


@dataclass(frozen=True)
class DenseSize:
    """The size of the layer that a form stands for.

    Attributes:
        in_channels, out_channels: as of `torch.nn.Conv2d`, or the features of a linear layer.
        kernel_size: one int for each spatial axis; empty for a linear layer.
        groups: as of `torch.nn.Conv2d`.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        for name, value in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if self.groups < 1 or value < 1 or value % self.groups:
                raise LayerError(f"{name} is {value}; it must be at least 1 and a multiple of groups, {self.groups}")
        if self.groups > 1 and not self.kernel_size:
            raise LayerError(f"a linear layer has no groups, and groups is {self.groups}; the kernel size is empty")
        if any(size < 1 for size in self.kernel_size):
            raise LayerError(f"kernel_size is {self.kernel_size}; every size must be at least 1")

    @property
    def weights(self) -> int:
        """The number of weights of the dense layer, without its bias."""
        return self.in_channels * self.out_channels // self.groups * prod(self.kernel_size)


@dataclass(frozen=True)
class Spec:
    """A form, made concrete.

    Attributes:
        string: the conv_einsum string.
        shapes: one for each factor.
        ranks: the sizes of the rank letters, in the order in which the string names them first. Of the interleaved
            form, the number of groups.
    """

    string: str
    shapes: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]


def make_spec(
    form: str,
    size: DenseSize,
    *,
    rate: float | None = None,
    rank: Rank | None = None,
    num_factors: int = 3,
    in_factors: Sequence[int] | None = None,
    out_factors: Sequence[int] | None = None,
) -> Spec:
    """The string and the factor shapes of a form.

    Args:
        form: a key of `ce_fx.nn.FORMS`.
        size: of the dense layer.
        rate: weights of the factors over those of the dense layer; give this or `rank`.
        rank: an int for all ranks (less where more would add nothing), or one for each in the order of the string.
        num_factors: M, for the reshaped forms.
        in_factors: the factors of a group's input channels, if not balanced ones.
        out_factors: the factors of a group's output channels, if not balanced ones.

    Raises:
        LayerError: no such form, or sizes that do not fit.
        RateError: no rank has this rate.
    """
    if (rate is None) == (rank is None):
        raise LayerError(f"give either rate or rank: rate is {rate!r} and rank {rank!r}")
    given = {"in_factors": in_factors, "out_factors": out_factors}
    lengths = {len(value) for value in given.values() if value is not None}
    if len(lengths) > 1:
        raise LayerError(f"in_factors {in_factors} and out_factors {out_factors} must be of one length")
    found = find_form(form, len(size.kernel_size), count := lengths.pop() if lengths else num_factors)
    if found.channels != "split" and (in_factors or out_factors):
        raise LayerError(f"form {form!r} has no choice of channel factors; leave in_factors and out_factors out")
    string = form_string(form, len(size.kernel_size), count, grouped=size.groups > 1)
    terms = factor_terms(string)
    sizes = dict(zip(CONV_LETTERS[len(size.kernel_size)], size.kernel_size, strict=True))
    sizes["g"] = size.groups
    if found.channels == "interleaved":
        return _interleaved(string, terms, sizes, size, rate, rank)
    for side, name, channels in (("s", "in_factors", size.in_channels), ("t", "out_factors", size.out_channels)):
        letters = found.letters(side, count)
        sizes.update(zip(letters, _factors(name, given[name], channels // size.groups, len(letters)), strict=True))
    ranks = list(dict.fromkeys(letter for term in terms for letter in term if letter not in sizes))
    if rate is not None:
        chosen = ranks_for_rate(terms, ranks, sizes, rate, size.weights)
    else:
        chosen = _given_ranks(form, terms, ranks, sizes, rank)
    return Spec(string, _shapes(terms, {**sizes, **dict(zip(ranks, chosen, strict=True))}), tuple(chosen))


def factor_terms(string: str) -> list[list[str]]:
    """The letters of the factors of a layer's string: of every operand but the first."""
    return split(string)[0][1:]


def _shapes(terms: Sequence[Sequence[str]], sizes: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sizes[letter] for letter in term) for term in terms)


def _factors(name: str, given: Sequence[int] | None, channels: int, count: int) -> tuple[int, ...]:
    if given is None:
        return balanced_factors(channels, count)
    if prod(given) != channels or any(value < 1 for value in given):
        raise LayerError(
            f"{name} {tuple(given)} must be positive and have the product {channels}, the channels of a group"
        )
    return tuple(given)


def _given_ranks(
    form: str, terms: list[list[str]], ranks: list[str], sizes: dict[str, int], rank: Rank | None
) -> list[int]:
    check_rank(rank)
    if isinstance(rank, int):
        return list(equal_ranks(rank, ranks, rank_caps(terms, ranks, sizes)).values())
    chosen = list(rank or ())
    if len(chosen) != len(ranks):
        raise LayerError(f"form {form!r} has {len(ranks)} ranks here, {', '.join(ranks)}, and rank gives {len(chosen)}")
    return chosen


def check_rank(rank: object) -> None:
    """Refuse what is no rank in any form.

    Raises:
        LayerError: it is neither an int of at least 1 nor several of these.
    """
    chosen: list[object] = list(rank) if isinstance(rank, Sequence) and not isinstance(rank, str) else [rank]
    if not chosen or any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in chosen):
        raise LayerError(f"rank must be an int of at least 1, or several of these, not {rank!r}")


def _interleaved(
    string: str, terms: list[list[str]], sizes: dict[str, int], size: DenseSize, rate: float | None, rank: Rank | None
) -> Spec:
    """The interleaved form: its rank is the number of groups of the first convolution, a divisor of both channels."""
    into, out = size.in_channels // size.groups, size.out_channels // size.groups

    def sized(groups: int) -> dict[str, int]:
        return {**sizes, "s1": groups, "s2": into // groups, "t1": groups, "t2": out // groups}

    divisors = [n for n in range(1, gcd(into, out) + 1) if gcd(into, out) % n == 0]
    counts = {n: count_weights(terms, sized(n)) for n in divisors}
    if rate is None:
        check_rank(rank)
        chosen, *others = [rank] if isinstance(rank, int) else list(rank or ())
        if others or chosen not in divisors:
            raise LayerError(f"the rank of form 'interleaved' is its number of groups, one of {divisors}, not {rank!r}")
    else:
        budget = budget_of(rate, size.weights)
        fitting = [n for n in divisors if counts[n] <= budget]
        if not fitting:
            raise too_small(rate, budget, size.weights, min(counts.values()))
        if budget > max(counts.values()):
            raise too_large(rate, budget, size.weights, max(counts.values()))
        chosen = max(fitting, key=lambda n: counts[n])
    return Spec(string, _shapes(terms, sized(chosen)), (chosen,))
