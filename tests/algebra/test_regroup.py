"""Reshapes as algebra, against NumPy's reshape on coordinates."""

from itertools import count
from math import prod

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from ce_fx.algebra import Axes, Axis, Index, substitute_axes
from ce_fx.algebra.regroup import regroup, unify
from ce_fx.sizes import product


def fresh_from(numbers: count):
    return lambda name, size: Index(f"{name.partition('#')[0]}#{next(numbers)}", size)


def coordinates(axes: Axes, values: dict[Index, int]) -> tuple[int, ...]:
    """Position on every axis, given a value for every index."""
    places = []
    for axis in axes:
        place = 0
        for index in axis:
            place = place * index.size + values[index]
        places.append(place)
    return tuple(places)


def plain(shape) -> Axes:
    return tuple((Index(f"x{n}", size),) for n, size in enumerate(shape))


FACTORS = st.lists(st.sampled_from([1, 2, 2, 3, 4, 6]), min_size=1, max_size=4)


@given(st.data())
def test_regroup_reads_the_same_elements(data):
    shape = data.draw(FACTORS)
    primes = [p for size in shape for p in _primes(size)]
    order = data.draw(st.permutations(primes))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
    target = [prod(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    result = regroup(plain(shape), target, fresh_from(count()))
    if isinstance(result, str):
        assert not _boundaries_divide(shape, target), result
        return
    table, axes = result
    old = substitute_axes(plain(shape), table)
    data_in = np.arange(prod(shape)).reshape(shape)
    data_out = data_in.reshape(target)
    indices = sorted({i for axis in (*old, *axes) for i in axis})
    for point in np.ndindex(*(i.size for i in indices)):
        values = dict(zip(indices, point, strict=True))
        assert data_in[coordinates(old, values)] == data_out[coordinates(axes, values)]


def _primes(n: int) -> list[int]:
    factors = []
    for p in (2, 3):
        while n % p == 0:
            factors.append(p)
            n //= p
    return factors


def _boundaries_divide(shape, target) -> bool:
    """Whether strides of all boundaries form a divisor chain: then a refinement exists."""
    tails = sorted({prod(s[n:]) for s in (shape, target) for n in range(len(s) + 1)})
    return all(b % a == 0 for a, b in zip(tails, tails[1:], strict=False))


def test_split_of_a_merged_channel():
    axes = ((Index("b", 4),), (Index("c", 6),), (Index("h", 5),))
    table, new = regroup(axes, (4, 2, 3, 5), fresh_from(count()))
    assert [[i.size for i in axis] for axis in new] == [[4], [2], [3], [5]]
    assert list(table) == [Index("c", 6)]


def test_boundary_that_does_not_divide_is_refused():
    assert regroup(plain((6, 4)), (4, 6), fresh_from(count())) == (
        "an axis of size 6 is split across a boundary of size 4"
    )


def test_wrong_number_of_elements_is_refused():
    assert "fewer" in regroup(plain((6, 4)), (6,), fresh_from(count()))
    assert "more" in regroup(plain((6,)), (6, 2), fresh_from(count()))


def test_symbolic_sizes_stay_whole():
    batch = Index("b", 4, "s0")
    axes = ((batch,), (Index("c", 4),), (Index("h", 3),))
    table, new = regroup(axes, ("s0", 2, 2, 3), fresh_from(count()))
    assert new[0] == (batch,)
    assert list(table) == [Index("c", 4)]
    assert "symbolic" in regroup(axes, (16, 3), fresh_from(count()))
    # a constant that happens to be equal to the hint is not the symbol
    assert isinstance(regroup(axes, (4, "s0", 3), fresh_from(count())), str)


def axes_of(sizes, name) -> Axis:
    return tuple(Index(f"{name}{n}", size) for n, size in enumerate(sizes))


@given(FACTORS, st.data())
def test_unify_gives_one_axis(sizes, data):
    primes = [p for size in sizes for p in _primes(size)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(primes)), max_size=3)))
    other = [prod(primes[a:b]) for a, b in zip([0, *cuts], [*cuts, len(primes)], strict=True)]
    left, right = axes_of(sizes, "l"), axes_of(other, "r")
    result = unify(left, right, fresh_from(count()))
    assume(not isinstance(result, str))
    left_table, right_table, common = result
    trimmed = tuple(i for i in left if i.size != 1)
    assert substitute_axes((trimmed,), left_table)[0] == common
    assert substitute_axes((right,), right_table)[0] == common


def test_unify_refuses_what_has_no_common_split():
    assert unify(axes_of((6, 4), "l"), axes_of((8, 3), "r"), fresh_from(count())) == (
        "sizes 6 and 8 have no common split"
    )
    twice = (Index("a", 2), Index("a", 2))
    assert "twice" in unify(twice, axes_of((4,), "r"), fresh_from(count()))


NAMED = st.lists(st.sampled_from(["s0", "s1", "s2", 2, 3, 6]), min_size=1, max_size=5)


@given(st.data())
def test_symbolic_axes_are_merged_and_parted_where_their_sizes_say_so(data):
    """A shape whose axes are runs of indices gives these runs; one that parts a symbol is refused."""
    sizes = data.draw(NAMED)
    indices = [Index(f"x{n}", *((7, size) if isinstance(size, str) else (size, ""))) for n, size in enumerate(sizes)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sizes)), max_size=3)))
    runs = [tuple(indices[a:b]) for a, b in zip([0, *cuts], [*cuts, len(sizes)], strict=True)]
    shape = [product(index.symbol or index.size for index in run) for run in runs]
    axes = tuple((index,) for index in indices)
    assert regroup(axes, shape, fresh_from(count())) == ({}, tuple(runs))
    assert regroup(tuple(runs), sizes, fresh_from(count())) == ({}, axes)
    wrong = [*shape, "s3"]
    assert "more elements" in regroup(axes, wrong, fresh_from(count()))


def test_a_symbolic_axis_is_not_parted():
    b = Index("b", 7, "s0·s1")
    assert regroup(((b,),), ["s0·s1"], fresh_from(count())) == ({}, ((b,),))
    assert "the symbolic size s0 is" in regroup(((b,),), ["s0", "s1"], fresh_from(count()))
    assert "the symbolic size s0·s1 is" in regroup(((b,),), [7], fresh_from(count()))
    assert "the symbolic size s0 is" in regroup(((Index("a", 4), b),), ["s0", 4, "s1"], fresh_from(count()))
