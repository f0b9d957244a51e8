from itertools import combinations_with_replacement, product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ce_fx
from ce_fx.nn import FORMS, ConvEinsum, LayerError, RateError, balanced_factors
from ce_fx.nn.forms import CONV_LETTERS
from tests.oracle import read


@pytest.mark.parametrize(
    ("number", "count", "factors"),
    [
        (64, 3, (4, 4, 4)),
        (12, 3, (2, 2, 3)),
        (7, 3, (1, 1, 7)),
        (1, 2, (1, 1)),
        (96, 2, (8, 12)),
        (30, 1, (30,)),
        (512, 4, (4, 4, 4, 8)),
        (1000, 3, (10, 10, 10)),
        (720, 2, (24, 30)),
        (2 * 499, 3, (1, 2, 499)),
    ],
)
def test_channels_are_split_evenly(number, count, factors):
    assert balanced_factors(number, count) == factors


@given(st.integers(1, 120), st.integers(1, 4))
def test_no_split_is_more_even(number, count):
    factors = balanced_factors(number, count)
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    all_of_them = [f for f in combinations_with_replacement(divisors, count) if prod(f) == number]
    assert factors in all_of_them
    assert sum(factors) == min(map(sum, all_of_them))


def test_nothing_is_split_into_nothing():
    with pytest.raises(LayerError, match="cannot write 0 as a product of 3"):
        balanced_factors(0, 3)


def weights(string, ranks, layer):
    """By definition: the sizes of the factors with other ranks."""
    terms = read(string, [0] * (string.count(",") + 1))[0][1:]
    sizes = {x: n for term, f in zip(terms, layer.factors, strict=True) for x, n in zip(term, f.shape, strict=True)}
    letters = rank_letters(string)
    sizes.update(zip(letters, ranks, strict=True))
    return sum(prod(sizes[x] for x in term) for term in terms)


def rank_letters(string):
    """Letters of the factors that are in neither input nor output, in the order of the string."""
    terms, output, _ = read(string, [0] * (string.count(",") + 1))
    return list(dict.fromkeys(x for term in terms[1:] for x in term if x not in terms[0] and x not in output))


RANKED = [form for form in FORMS if form != "interleaved"]


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("form", RANKED)
@pytest.mark.parametrize("rate", [0.1, 0.37, 1.0])
def test_a_rate_is_met_from_below_and_no_larger_rank_would_meet_it(form, dims, rate):
    if dims < FORMS[form].dims:
        pytest.skip("no such form")
    kernel = (3,) * dims
    budget = int(rate * 24 * 36 * prod(kernel))
    try:
        layer = ConvEinsum.of_form(form, 24, 36, kernel, rate=rate)
    except RateError as error:
        smallest = ConvEinsum.of_form(form, 24, 36, kernel, rank=1).num_weights
        assert smallest > budget
        assert error.nearest == smallest / (24 * 36 * prod(kernel))
        return
    assert layer.num_weights == sum(p.numel() for p in layer.factors) == weights(layer.string, layer.ranks, layer)
    assert layer.num_weights <= budget
    assert layer.rate == layer.num_weights / (24 * 36 * prod(kernel))
    for n in range(len(layer.ranks)):
        raised = (*layer.ranks[:n], layer.ranks[n] + 1, *layer.ranks[n + 1 :])
        assert weights(layer.string, raised, layer) > budget or adds_nothing(layer.string, raised, n, layer)
        assert not adds_nothing(layer.string, layer.ranks, n, layer)


@pytest.mark.parametrize("form", ["tucker", "tucker_full", "tt", "tr", "bt", "ht", "rtk", "rtt", "rtr", "rbt", "rht"])
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.62])
def test_no_ranks_of_the_common_one_or_one_more_come_closer(form, rate):
    channels = 18, 20
    budget = int(rate * prod(channels) * 9)
    layer = ConvEinsum.of_form(form, *channels, (3, 3), rate=rate)
    common = (1,) * len(layer.ranks)
    for rank in range(2, 400):
        equal = ConvEinsum.of_form(form, *channels, (3, 3), rank=rank)
        if equal.num_weights > budget:
            break
        common = equal.ranks
    for ranks in product(*(range(rank, rank + 2) for rank in common)):
        if layer.num_weights < weights(layer.string, ranks, layer) <= budget:
            assert any(adds_nothing(layer.string, ranks, n, layer) for n in range(len(ranks))), (ranks, layer.ranks)
    assert layer.num_weights <= budget


def adds_nothing(string, ranks, n, layer):
    """Whether a rank exceeds the rank of a matrix: one of its two factors, or the kernel unfolded there."""
    terms = read(string, [0] * (string.count(",") + 1))[0][1:]
    sizes = {x: s for term, f in zip(terms, layer.factors, strict=True) for x, s in zip(term, f.shape, strict=True)}
    letters = rank_letters(string)
    sizes.update(zip(letters, ranks, strict=True))
    holders = [term for term in terms if letters[n] in term]
    if len(holders) > 2:
        return False
    both = set(holders[0]) & set(holders[1])
    if any(ranks[n] > prod(sizes[x] for x in term if x not in both) for term in holders):
        return True
    return any(ranks[n] > prod(side) for side in unfoldings(terms, holders, letters, letters[n], sizes))


def unfoldings(terms, holders, letters, cut, sizes):
    """The letters on both sides of the cut, if it parts the network in two; letters of many factors connect nothing."""
    bonds = [x for x in letters if x != cut and sum(x in term for term in terms) == 2]
    side = [holders[0]]
    for _ in terms:
        side += [term for term in terms if term not in side and any(x in bonds and x in y for y in side for x in term)]
    if holders[1] in side:
        return
    rest = [term for term in terms if term not in side]
    here, there = ({x for term in part for x in term} - set(letters) for part in (side, rest))
    yield [sizes[x] for x in here - there]
    yield [sizes[x] for x in there - here]


@given(form=st.sampled_from(["cp", "rcp"]), channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
       kernel=st.lists(st.integers(1, 5), min_size=1, max_size=3), rate=st.floats(0.02, 1.5))  # fmt: skip
def test_one_rank_is_exactly_the_closest(form, channels, kernel, rate):
    dense = prod(channels) * prod(kernel)
    per_rank = ConvEinsum.of_form(form, *channels, kernel, rank=1).num_weights
    if per_rank > rate * dense:
        with pytest.raises(RateError, match=f"has {per_rank}; the smallest possible rate is"):
            ConvEinsum.of_form(form, *channels, kernel, rate=rate)
        return
    layer = ConvEinsum.of_form(form, *channels, kernel, rate=rate)
    assert layer.num_weights <= rate * dense * (1 + 1e-12) < layer.num_weights + per_rank * (1 + 1e-9)


def test_a_rate_that_floats_round_down_is_met():
    assert 0.29 * 4 * 25 < 29
    assert ConvEinsum.of_form("cp", 25, 4, (), rate=0.29).num_weights == 29


def test_a_rate_of_one_is_possible_for_every_ranked_form():
    for form in RANKED:
        layer = ConvEinsum.of_form(form, 64, 64, (3, 3), rate=1.0)
        assert 0.85 < layer.rate <= 1, (form, layer.rate)


def test_errors_name_the_nearest_rate():
    message = "rate 0.001 is 36 of the dense layer's 36864 weights, but the smallest layer of this form has 134; "
    with pytest.raises(RateError, match=message + "the smallest possible rate is 0.00363498") as caught:
        ConvEinsum.of_form("tt", 64, 64, (3, 3), rate=0.001)
    assert ConvEinsum.of_form("tt", 64, 64, (3, 3), rate=caught.value.nearest).num_weights == 134
    with pytest.raises(RateError, match="has at most 2048 useful ones; the largest possible rate is 2") as caught:
        ConvEinsum.of_form("tt", 32, 32, (), rate=3)
    assert ConvEinsum.of_form("tt", 32, 32, (), rate=caught.value.nearest).num_weights == 2048
    assert issubclass(RateError, ce_fx.CeFxError) and issubclass(RateError, ValueError)


def test_interleaved_groups_are_a_common_divisor():
    layer = ConvEinsum.of_form("interleaved", 24, 36, (3, 3), rate=0.3)
    assert layer.ranks == (4,) and layer.num_weights == 24 * 36 * 9 // 4 + 4 * 36 == 2088
    with pytest.raises(RateError, match="the smallest layer of this form has 1080"):
        ConvEinsum.of_form("interleaved", 24, 36, (3, 3), rate=0.1)
    with pytest.raises(RateError, match="at most 7812 useful ones; the largest possible rate is 1.00463") as caught:
        ConvEinsum.of_form("interleaved", 24, 36, (3, 3), rate=1.2)
    assert ConvEinsum.of_form("interleaved", 24, 36, (3, 3), rate=caught.value.nearest).num_weights == 7812
    with pytest.raises(LayerError, match=r"its number of groups, one of \[1, 2, 3, 4, 6, 12\], not 5"):
        ConvEinsum.of_form("interleaved", 24, 36, (3, 3), rank=5)
    with pytest.raises(LayerError, match=r"one of \[1, 2, 3, 4, 6, 12\], not \(2, 3\)"):
        ConvEinsum.of_form("interleaved", 24, 36, (3, 3), rank=(2, 3))
    assert ConvEinsum.of_form("interleaved", 24, 36, (3, 3), rank=(2,)).ranks == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either rate or rank: rate is None and rank None"),
        ({"rate": 0.1, "rank": 3}, "give either rate or rank"),
        ({"rate": 0}, "rate must be a positive number"),
        ({"rate": float("nan")}, "rate must be a positive number"),
        ({"rank": 0}, "rank must be an int of at least 1, or several of these, not 0"),
        ({"rank": (2, 3)}, "form 'rtt' has 3 ranks here, r1, r2, r3, and rank gives 2"),
        ({"rank": (2, 3, 0)}, r"rank must be an int of at least 1, or several of these, not \(2, 3, 0\)"),
        ({"rank": 2, "in_factors": (4, 4)}, r"in_factors \(4, 4\) must be positive and have the product 24"),
        ({"rank": 2, "in_factors": (4, 6), "out_factors": (6, 6, 1)}, "must be of one length"),
        ({"rank": 2, "groups": 5}, "in_channels is 24; it must be at least 1 and a multiple of groups, 5"),
        ({"rank": 2, "kernel_size": (3, 0)}, r"kernel_size is \(3, 0\); every size must be at least 1"),
        ({"rank": 2, "kernel_size": 3}, "kernel_size must be a tuple, one size for each axis, not 3"),
        ({"rank": 2, "kernel_size": (), "groups": 2}, "a linear layer has no groups"),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(LayerError, match=message):
        ConvEinsum.of_form("rtt", 24, 36, **{"kernel_size": (3, 3), **options})


def test_channel_factors_may_be_given():
    layer = ConvEinsum.of_form("rtt", 24, 36, (3,), rank=2, in_factors=(2, 12), out_factors=(6, 6))
    assert [tuple(f.shape) for f in layer.factors] == [(2, 6, 2), (2, 2, 6, 12), (2, 3)]
    with pytest.raises(LayerError, match="form 'cp' has no choice of channel factors"):
        ConvEinsum.of_form("cp", 24, 36, (3,), rank=2, in_factors=(2, 12))


def test_one_rank_for_all_is_cut_where_more_adds_nothing():
    assert ConvEinsum.of_form("tucker", 3, 64, (3, 3), rank=10).ranks == (10, 3)
    assert ConvEinsum.of_form("tucker", 3, 64, (3, 3), rank=(10, 4)).ranks == (10, 4)


def test_conv_letters_cover_every_dimension():
    assert [len(letters) for letters in CONV_LETTERS] == [0, 1, 2, 3]
