"""Multiplication by numbers and tensors."""

import pytest
import torch
import torch.nn.functional as F

from tests.lift.helpers import assert_lifts, rand, refusal


def test_numbers_become_coefficients():
    region = assert_lifts(lambda x, w: -(2 * (x @ w) / 4) * 3.0, rand(2, 3), rand(3, 4), factors=2)
    assert region.expression.terms[0].coefficient == -1.5


def test_numbers_scale_every_term():
    assert_lifts(lambda x, w, b: 2 * F.linear(x, w, b), rand(2, 3), rand(4, 3), rand(4), terms=2)


def test_rank_vector():
    """CP's weights: a vector multiplies the rank axis."""

    def function(x, a, v, b):
        return F.conv2d(F.conv2d(x, a) * v.view(1, -1, 1, 1), b)

    assert_lifts(function, rand(2, 3, 4, 4), rand(5, 3, 1, 1), rand(5), rand(6, 5, 1, 1), factors=4)


def test_tensor_products_broadcast_both_ways():
    assert_lifts(lambda x, y: x * y, rand(2, 1, 4), rand(3, 1), factors=2)


def test_division_by_a_tensor_is_refused():
    assert_lifts(lambda x, w, d: (x @ w) / d, rand(2, 3), rand(3, 4), rand(4))
    reason = refusal(lambda x, w, d: (x @ w) / (d * 2), rand(2, 3), rand(3, 4), rand(4))
    assert reason == "division by a tensor that is computed within the region"


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, v: (x @ w) / (v + 0.1).sqrt(),
        lambda x, w, v: (x @ w) * torch.rsqrt(0.1 + v),
        lambda x, w, v: (x @ w) * (0.1 + v).rsqrt() / 1,
    ],
)
def test_the_scale_of_a_norm_is_one_leaf_however_it_is_spelt(function):
    region = assert_lifts(function, rand(2, 3), rand(3, 4), rand(4).abs(), factors=3)
    assert [leaf.kind for leaf in region.derived] == ["rsqrt"]
    assert region.derived[0].params == (0.1,)


def test_a_root_is_a_leaf():
    region = assert_lifts(lambda x, w, v: (x @ w) * v.sqrt(), rand(2, 3), rand(3, 4), rand(4).abs(), factors=3)
    assert [leaf.kind for leaf in region.derived] == ["sqrt"]


def test_a_root_of_a_product_is_refused():
    reason = refusal(lambda x, w: torch.sqrt(x @ w), rand(2, 3), rand(3, 4))
    assert reason == "the root of what is computed within the region"


def test_promotion_is_refused():
    reason = refusal(lambda x, w: (x @ w) * 1j, rand(2, 3), rand(3, 4))
    assert "complex128" in reason


def test_active_dropout_is_refused():
    reason = refusal(lambda x, w: F.dropout(x @ w, 0.5, True), rand(2, 3), rand(3, 4))
    assert reason == "active dropout"
