"""How large the factors are: channel factorisations, and ranks from a rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import floor, prod

from ce_fx.nn.errors import LayerError, RateError

Terms = Sequence[Sequence[str]]

_MOST = 2**11  # ranks that are tried for one layer, some milliseconds


@lru_cache
def balanced_factors(number: int, count: int) -> tuple[int, ...]:
    """A number as a product of `count` factors that are as equal as its divisors allow, in ascending order.

    As equal as possible means: of the smallest sum. 64 in three is (4, 4, 4), 12 is (2, 2, 3), a prime p is (1, 1, p).

    Raises:
        LayerError: number or count is less than 1.
    """
    if number < 1 or count < 1:
        raise LayerError(f"cannot write {number} as a product of {count} factors; both must be at least 1")
    return min(_factorisations(number, count, 1), key=lambda factors: (sum(factors), factors[-1]))


def _factorisations(number: int, count: int, least: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (number,)
        return
    factor = least
    while factor**count <= number:
        if number % factor == 0:
            yield from ((factor, *rest) for rest in _factorisations(number // factor, count - 1, factor))
        factor += 1


def count_weights(terms: Terms, sizes: Mapping[str, int]) -> int:
    """The number of entries of all factors."""
    return sum(prod(sizes[letter] for letter in term) for term in terms)


def rank_caps(terms: Terms, ranks: Sequence[str], sizes: Mapping[str, int]) -> dict[str, int | None]:
    """The rank beyond which a letter adds nothing, or None where there is no simple bound.

    A rank that two factors share, and whose removal parts the factors in two, is the rank of a matrix: of the kernel
    with the letters of one part as rows. It is at most the smaller side. A letter of three or more factors (CP's `r`,
    the `n` of block terms) is like a batch of products, and a rank on a ring has no such bound.
    """
    holders = {r: [n for n, term in enumerate(terms) if r in term] for r in ranks}
    bonds = {r: pair for r, pair in holders.items() if len(pair) == 2}

    def cap(rank: str) -> int | None:
        if rank not in bonds:
            return None
        start, end = bonds[rank]
        side = _reached(start, [pair for r, pair in bonds.items() if r != rank])
        if end in side:
            return None
        parts = [{x for n, term in enumerate(terms) if (n in side) is here for x in term} for here in (True, False)]
        return min(prod(sizes[x] for x in part - other - set(ranks)) for part, other in (parts, parts[::-1]))

    return {r: cap(r) for r in ranks}


def _reached(start: int, edges: Sequence[Sequence[int]]) -> set[int]:
    """The nodes of a graph that are connected with `start`."""
    reached, grew = {start}, True
    while grew:
        more = {n for pair in edges if reached & set(pair) for n in pair} - reached
        reached |= more
        grew = bool(more)
    return reached


def equal_ranks(rank: int, ranks: Sequence[str], caps: Mapping[str, int | None]) -> dict[str, int]:
    """The same rank for every letter, less where more adds nothing."""
    return {r: rank if (cap := caps[r]) is None else min(rank, cap) for r in ranks}


def ranks_for_rate(terms: Terms, ranks: Sequence[str], sizes: Mapping[str, int], rate: float, dense: int) -> list[int]:
    """Ranks whose number of weights comes close to `rate * dense` from below.

    With one rank it comes closest. With several, ranks of any shape might come closer, and are of no use: they are to
    be as equal as their caps allow. Around the largest common rank that fits, no ranks that are the same or one more
    come closer, and no single one can be raised. Where there are more than `_MOST` such ranks they are not tried:
    single ones are raised by one, the smallest first.

    Args:
        terms: letters of each factor.
        ranks: the letters whose sizes are sought.
        sizes: of all other letters.
        rate: weights of the factors over `dense`, > 0.
        dense: weights of the dense layer.

    Returns:
        A rank for each letter.

    Raises:
        RateError: ranks of 1 have too many weights already, or the largest useful ranks too few.
    """
    budget = budget_of(rate, dense)
    caps = rank_caps(terms, ranks, sizes)

    def weights(chosen: Mapping[str, int]) -> int:
        return count_weights(terms, {**sizes, **chosen})

    def fits(rank: int) -> bool:
        return weights(equal_ranks(rank, ranks, caps)) <= budget

    if not fits(1):
        raise too_small(rate, budget, dense, weights(equal_ranks(1, ranks, caps)))
    widest = max((cap for cap in caps.values() if cap is not None), default=1)
    bounded = None not in caps.values()
    if bounded and weights(equal_ranks(widest, ranks, caps)) < budget:
        raise too_large(rate, budget, dense, weights(equal_ranks(widest, ranks, caps)))
    chosen = equal_ranks(_last(fits, widest if bounded else None), ranks, caps)

    def useful(trial: dict[str, int], raised: str) -> bool:
        return is_useful(terms, trial, raised, sizes, caps[raised])

    def full(trial: dict[str, int]) -> dict[str, int]:
        return _raised(trial, useful, lambda more: weights(more) <= budget)

    found = [full(chosen)]
    closest = weights(found[0])
    for trial in _above(chosen) if 2 ** len(ranks) <= _MOST else ():
        if closest < weights(trial) <= budget and all(useful(trial, rank) for rank in ranks):
            closest = weights(trial)
            found.append(full(trial))
    return list(max(found, key=weights).values())


def budget_of(rate: float, dense: int) -> int:
    """The number of weights that a rate allows.

    Raises:
        LayerError: the rate is no positive number.
    """
    if not 0 < rate < float("inf"):
        raise LayerError(f"rate must be a positive number, such as 0.1 for a tenth of the dense layer's, not {rate!r}")
    return floor(rate * dense * (1 + 1e-12))  # 0.29 * 100 is 28.999..


def too_small(rate: float, budget: int, dense: int, least: int) -> RateError:
    """The error for a rate that even the smallest ranks exceed."""
    return RateError(
        f"rate {rate:g} is {budget} of the dense layer's {dense} weights, but the smallest layer of this form has "
        f"{least}; the smallest possible rate is {least / dense:.6g}",
        least / dense,
    )


def too_large(rate: float, budget: int, dense: int, most: int) -> RateError:
    """The error for a rate that even the largest useful ranks do not reach."""
    return RateError(
        f"rate {rate:g} is {budget} of the dense layer's {dense} weights, but this form has at most {most} useful "
        f"ones; the largest possible rate is {most / dense:.6g}",
        most / dense,
    )


def _above(chosen: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Ranks that are the same or one more, the fewest changes first."""
    for change in sorted(product((0, 1), repeat=len(chosen)), key=sum):
        yield {name: rank + step for (name, rank), step in zip(chosen.items(), change, strict=True)}


def _last(fits: Callable[[int], bool], limit: int | None) -> int:
    """The largest number that fits, where 1 does and smaller ones do, too; not above the limit."""
    low, high = 1, 2
    while fits(high) and (limit is None or high < limit):
        low, high = high, 2 * high
    if limit is not None and fits(limit):
        return limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _raised(
    chosen: dict[str, int], useful: Callable[[dict[str, int], str], bool], fits: Callable[[dict[str, int]], bool]
) -> dict[str, int]:
    """Ranks, single ones raised by one for as long as that fits and is of use, the smallest first."""
    while True:
        order = sorted(chosen, key=lambda name: chosen[name])
        trials = [({**chosen, r: chosen[r] + 1}, r) for r in order]
        better = next((trial for trial, r in trials if useful(trial, r) and fits(trial)), None)
        if better is None:
            return chosen
        chosen = better


def is_useful(terms: Terms, ranks: Mapping[str, int], rank: str, sizes: Mapping[str, int], cap: int | None) -> bool:
    """Whether the last unit of a rank can add anything: the rank is within its cap, and within its two factors' sizes.

    A factor that is a matrix of this rank and all its other letters has at most as many independent rows.
    """
    holders = [term for term in terms if rank in term]
    if len(holders) != 2:
        return True
    batch = set(holders[0]) & set(holders[1])
    limits = [prod({**sizes, **ranks}[letter] for letter in term if letter not in batch) for term in holders]
    return ranks[rank] <= min(*limits, cap or ranks[rank])
