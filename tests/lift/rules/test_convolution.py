"""Convolution rules: they fire, mean what torch computes, and refuse with a reason."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.lift.helpers import assert_lifts, rand, refusal, regions_of

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@given(st.data())
def test_conv_of_any_geometry(data):
    n = data.draw(st.integers(1, 3))
    groups = data.draw(st.integers(1, 3))
    ins, outs = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(n)]
    stride = [data.draw(st.integers(1, 3)) for _ in range(n)]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(n)]
    padding = [data.draw(st.integers(0, 2)) for _ in range(n)]
    size = [d * (k - 1) + 1 + data.draw(st.integers(0, 3)) for d, k in zip(dilation, kernel, strict=True)]
    x, w = rand(2, ins * groups, *size), rand(outs * groups, ins, *kernel)
    assert_lifts(lambda x, w: CONVS[n](x, w, None, stride, padding, dilation, groups), x, w, factors=2)


@given(st.data())
def test_transposed_conv_of_any_geometry(data):
    n = data.draw(st.integers(1, 2))
    groups = data.draw(st.integers(1, 2))
    ins, outs = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(n)]
    stride = [data.draw(st.integers(1, 3)) for _ in range(n)]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(n)]
    output_padding = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    padding = [data.draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True)]
    x, w = rand(2, ins * groups, *([4] * n)), rand(ins * groups, outs, *kernel)
    conv = TRANSPOSED[n]
    assert_lifts(lambda x, w: conv(x, w, None, stride, padding, output_padding, groups, dilation), x, w, factors=2)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(padding):
    assert_lifts(lambda x, w: F.conv2d(x, w, padding=padding), rand(1, 2, 5, 6), rand(3, 2, 4, 3), windows=2)


def test_unbatched():
    assert_lifts(lambda x, w: F.conv2d(x, w, padding=1), rand(2, 5, 5), rand(3, 2, 3, 3), windows=2)


def test_bias_is_one_more_term():
    args = rand(2, 3, 5, 5), rand(4, 3, 3, 3), rand(4)
    assert_lifts(lambda x, w, b: F.conv2d(x, w, b, padding=1), *args, terms=2)


def test_bias_of_a_grouped_conv_goes_along_the_split_channels():
    args = rand(2, 4, 5), rand(6, 2, 3), rand(6)
    assert_lifts(lambda x, w, b: F.conv1d(x, w, b, groups=2), *args, terms=2)


def test_strips_on_different_axes_join():
    def strips(x, a, b):
        return F.conv2d(F.conv2d(x, a, padding=(1, 0)), b, padding=(0, 1), stride=(1, 2))

    assert_lifts(strips, rand(1, 2, 6, 6), rand(3, 2, 3, 1), rand(2, 3, 1, 3), factors=3, windows=2)


def test_unpadded_second_kernel_on_the_same_axis_joins():
    region = assert_lifts(
        lambda x, a, b: F.conv1d(F.conv1d(x, a, padding=1), b), rand(1, 2, 9), rand(3, 2, 3), rand(2, 3, 3), factors=3
    )
    assert len(region.expression.terms[0].windows[0].taps) == 2


def test_pointwise_strided_then_padded_joins():
    function = lambda x, a, b: F.conv1d(F.conv1d(x, a, stride=2), b, padding=1)  # noqa: E731
    assert_lifts(function, rand(1, 2, 9), rand(3, 2, 1), rand(2, 3, 3), factors=3)


def test_padded_after_padded_stays_apart():
    function = lambda x, a, b: F.conv1d(F.conv1d(x, a, padding=1), b, padding=1)  # noqa: E731
    found, _ = regions_of(function, rand(1, 2, 9), rand(3, 2, 3), rand(2, 3, 3))
    assert len(found.regions) == 2
    assert found.regions[1].border == "padding between two kernels on one axis: composing them would change the border"


def test_bias_before_a_padded_conv_stays_apart():
    function = lambda x, a, c, b: F.conv1d(F.conv1d(x, a, c), b, padding=1)  # noqa: E731
    reason = refusal(function, rand(1, 2, 9), rand(3, 2, 1), rand(3), rand(2, 3, 3))
    assert reason.startswith("a constant before a padded convolution")


def test_transposed_after_conv_stays_apart():
    function = lambda x, a, b: F.conv_transpose1d(F.conv1d(x, a, padding=1), b)  # noqa: E731
    assert "transposed" in refusal(function, rand(1, 2, 9), rand(3, 2, 3), rand(3, 2, 3))


def test_factorised_transposed_joins():
    function = lambda x, a, b, c: F.conv1d(F.conv_transpose1d(F.conv1d(x, a), b, stride=2, groups=3), c)  # noqa: E731
    assert_lifts(function, rand(1, 2, 5), rand(3, 2, 1), rand(3, 1, 4), rand(2, 3, 1), factors=4, windows=1)


def test_depthwise_on_merged_channels():
    def function(x, w):
        y = x.reshape(2, 2 * 3, 5)
        return F.conv1d(y, w, groups=6, padding=1).reshape(2, 2, 3, 5)

    assert_lifts(function, rand(2, 2, 3, 5), rand(6, 1, 3), factors=2, windows=1)


def test_batch_folded_channels():
    """[B*C, 1, L]: channels that ride in the batch."""

    def function(x, w):
        return F.conv1d(x.reshape(2 * 3, 1, 5), w, padding=1).reshape(2, 3, 4, 5)

    assert_lifts(function, rand(2, 3, 5), rand(4, 1, 3), factors=2)


def test_one_position_keeps_its_index():
    """A kernel as large as the features leaves one position; flattening must not lose it."""
    function = lambda x, w, v: F.conv1d(x, w).reshape(2, 4) @ v  # noqa: E731
    assert_lifts(function, rand(2, 3, 5), rand(4, 3, 5), rand(4, 6), factors=3, windows=1)


def test_features_of_size_one():
    assert_lifts(lambda x, w: F.conv2d(x, w, padding=1), rand(2, 3, 1, 1), rand(4, 3, 3, 3), windows=2)


def test_int_convolution_is_refused():
    x, w = torch.ones(1, 2, 5, dtype=torch.int64), torch.ones(3, 2, 3, dtype=torch.int64)
    assert "int64" in refusal(lambda x, w: F.conv1d(x, w), x, w)


def test_sum_over_positions_is_refused():
    function = lambda x, w: torch.einsum("btl->bt", F.conv1d(x, w))  # noqa: E731
    assert refusal(function, rand(1, 2, 9), rand(3, 2, 3)) == "the positions of a convolution are summed"


def test_product_over_positions_is_refused():
    function = lambda x, w, m: F.conv1d(x, w) * m  # noqa: E731
    reason = refusal(function, rand(1, 2, 9), rand(3, 2, 3), rand(7))
    assert reason == "a position axis of a convolution meets another tensor"


@pytest.mark.parametrize("transposed", [False, True])
def test_the_op_of_torchs_decompositions(transposed):
    x, w = rand(2, 6, 9, 8), rand(*((6, 2, 3, 2) if transposed else (4, 3, 3, 2)))
    geometry = ([2, 1], [1, 0], [1, 2], transposed, [0, 0], 2)
    assert_lifts(lambda x, w: torch.ops.aten.convolution.default(x, w, None, *geometry), x, w, factors=2)
    written = F.conv_transpose2d if transposed else F.conv2d
    more = {"output_padding": [0, 0]} if transposed else {}
    same = written(x, w, None, [2, 1], [1, 0], dilation=[1, 2], groups=2, **more)
    torch.testing.assert_close(torch.ops.aten.convolution.default(x, w, None, *geometry), same)
