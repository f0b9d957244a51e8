"""Resizes and average pools: their matrices and windows mean what torch computes, and channel mixing crosses them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.lift.helpers import assert_lifts, assert_rewrites, rand, refusal, regions_of

MODES = {"nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "linear": (1,), "bilinear": (2,), "trilinear": (3,)}
MODES |= {"bicubic": (2,), "area": (1, 2, 3)}
CASES = [(mode, n) for mode, ns in MODES.items() for n in ns]
CORNERS = ("linear", "bilinear", "trilinear", "bicubic")


@given(st.data())
def test_resize(data):
    """To any size, or by any factor, which is not the ratio of the sizes unless it is to be computed again."""
    mode, n = data.draw(st.sampled_from(CASES))
    sizes = [data.draw(st.integers(1, 5)) for _ in range(n)]
    align = data.draw(st.booleans()) if mode in CORNERS else None
    if data.draw(st.booleans()):
        how = {"size": [data.draw(st.integers(1, 7)) for _ in range(n)]}
    else:
        factors = [(0.5, 0.7, 1.0, 1.3, 2.0, 2.6) if size > 1 else (1.0, 1.3, 2.0, 2.6) for size in sizes]
        how = {"scale_factor": [data.draw(st.sampled_from(some)) for some in factors]}
        how["recompute_scale_factor"] = data.draw(st.booleans())
    function = lambda x: F.interpolate(x, **how, mode=mode, align_corners=align)
    x = rand(1, 2, *sizes).requires_grad_()
    found, _ = regions_of(function, x)
    if found.refusals:
        assert mode in ("nearest", "bicubic") and "gradient" in refusal(function, x)
    else:
        assert_lifts(function, x.detach())
        assert not _forgets_a_factor(function, x)


def _forgets_a_factor(function, x):
    """Whether what torch takes for the gradient is not the transpose of what it computes."""
    rows = torch.stack([function(unit.view(x.shape)).flatten() for unit in torch.eye(x.numel(), dtype=x.dtype)])
    y = function(x)
    gradients = [torch.autograd.grad(y.flatten()[n], x, retain_graph=True)[0].flatten() for n in range(y.numel())]
    return not torch.allclose(rows, torch.stack(gradients, 1))


def test_a_resize_whose_gradient_is_another_is_refused():
    """Two of three positions are at another place, but their gradients go straight back."""
    for function, x in (
        (lambda x: F.interpolate(x, scale_factor=1.3), rand(1, 1, 3)),
        (lambda x: F.interpolate(x, scale_factor=1.2, mode="bicubic"), rand(1, 1, 3, 3)),
    ):
        assert _forgets_a_factor(function, x.requires_grad_())
        assert "gradient" in refusal(function, x)


@pytest.mark.parametrize(("mode", "n"), CASES)
def test_each_mode_of_resize(mode, n):
    x = rand(1, 2, *[3] * n)
    assert_lifts(lambda x: F.interpolate(x, 5, mode=mode), x, factors=1 + n)
    assert_lifts(lambda x: F.interpolate(x, scale_factor=1.7, mode=mode), x, factors=1 + n)


def test_a_resize_to_the_same_size_is_nothing():
    assert_lifts(lambda x: F.interpolate(x, (4, 5), mode="bilinear"), rand(1, 2, 4, 5), factors=1)
    assert_lifts(lambda x: F.interpolate(x, (4, 10), mode="bilinear"), rand(1, 2, 4, 5), factors=2)


def test_a_resize_of_one_position_is_a_broadcast():
    assert_lifts(lambda x: F.interpolate(x, (4, 5), mode="bicubic"), rand(1, 2, 1, 1), factors=1)


@given(st.data())
def test_adaptive_avg_pool(data):
    n = data.draw(st.integers(1, 3))
    sizes = [data.draw(st.integers(1, 6)) for _ in range(n)]
    out = [data.draw(st.integers(1, 6)) for _ in range(n)]
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[n]
    assert_lifts(lambda x: pool(x, out), rand(*data.draw(st.sampled_from(((2, 2), (2,)))), *sizes))


@given(st.data())
def test_avg_pool(data):
    n = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(n)]
    sizes = [k + data.draw(st.integers(0, 3)) for k in kernel]
    stride = data.draw(st.sampled_from((None, [data.draw(st.integers(1, 3)) for _ in range(n)])))
    pad = [data.draw(st.integers(0, k // 2)) for k in kernel]
    ceil, counted = data.draw(st.booleans()), data.draw(st.booleans())
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[n]
    assert_lifts(lambda x: pool(x, kernel, stride, pad, ceil, counted), rand(2, 2, *sizes))


def test_a_divisor_of_its_own():
    assert_lifts(lambda x: F.avg_pool2d(x, 2, 1, 1, False, False, 3), rand(1, 2, 4, 5), windows=2)
    function = lambda x: F.avg_pool2d(x, 2, 2, 0, True, True, 3)
    assert "divisor" in refusal(function, rand(1, 2, 4, 5))


def test_parts_of_an_axis_are_summed_without_a_kernel():
    assert_lifts(lambda x: F.avg_pool2d(x, 2), rand(1, 2, 4, 6), factors=1, windows=0)
    assert_lifts(lambda x: F.adaptive_avg_pool2d(x, 1), rand(1, 2, 4, 6), factors=1, windows=0)


@pytest.mark.parametrize(
    "head",
    [
        lambda x, a, b: F.conv2d(F.interpolate(F.conv2d(x, a), (8, 10), mode="bilinear"), b),
        lambda x, a, b: F.conv2d(F.interpolate(x, (8, 10), mode="bicubic"), torch.einsum("tshw,uthw->ushw", a, b)),
        lambda x, a, b: F.conv2d(F.avg_pool2d(F.conv2d(x, a), 2), b),
        lambda x, a, b: F.conv2d(F.avg_pool2d(F.conv2d(x, a), 3, 2, 1, count_include_pad=False), b),
        lambda x, a, b: F.conv2d(F.adaptive_avg_pool2d(F.conv2d(x, a), 3), b),
        lambda x, a, b: F.interpolate(F.conv2d(F.conv2d(F.adaptive_avg_pool2d(x, 1), a), b), (4, 5)),
    ],
)
def test_channel_mixing_crosses(head):
    args = rand(2, 3, 4, 5), rand(4, 3, 1, 1), rand(2, 4, 1, 1)
    assert_lifts(head, *args)
    assert_rewrites(head, *args, changed=None)


def test_the_head_of_segformer_works_at_the_low_resolution():
    def head(x, a, b):
        return F.conv2d(F.interpolate(F.conv2d(x, a), (16, 16), mode="bilinear"), b)

    args = rand(1, 6, 4, 4), rand(32, 6, 1, 1), rand(5, 32, 1, 1)
    assert_lifts(head, *args, factors=5)
    assert_rewrites(head, *args)


def test_a_bias_crosses_as_it_is():
    """The weights of a resize sum to 1, so a constant is not multiplied by its matrices."""

    def head(x, a, bias, b):
        return F.conv2d(F.interpolate(F.conv2d(x, a, bias), (8, 8), mode="bilinear"), b)

    args = rand(2, 3, 4, 4), rand(4, 3, 1, 1), rand(4), rand(2, 4, 1, 1)
    region = assert_lifts(head, *args, terms=2)
    assert sorted(len(term.factors) for term in region.expression.terms) == [2, 5]
    assert_rewrites(head, *args)


def test_a_bias_before_a_padded_pool_is_spread_by_its_matrix():
    function = lambda x, a, bias: F.avg_pool2d(F.conv2d(x, a, bias), 3, 1, 1)
    args = rand(2, 3, 4, 4), rand(4, 3, 1, 1), rand(4)
    assert_lifts(function, *args, terms=2)
    assert_rewrites(function, *args, changed=None)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_slides_over_what_was_resized(mode, padding):
    def function(x, a, b):
        return F.conv2d(F.conv2d(F.interpolate(x, (7, 8), mode=mode), a, padding=padding), b)

    args = rand(2, 5, 3, 4), rand(2, 5, 3, 3), rand(6, 2, 1, 1)
    assert_lifts(function, *args, windows=2)
    assert_rewrites(function, *args, changed=None)


def test_strips_slide_over_what_was_resized():
    def function(x, a, b):
        y = F.interpolate(x, scale_factor=2, mode="bilinear")
        return F.conv2d(F.conv2d(y, a, padding=(1, 0)), b, padding=(0, 1))

    args = rand(2, 5, 4, 4), rand(2, 5, 3, 1), rand(6, 2, 1, 3)
    assert_lifts(function, *args, factors=5, windows=2)
    assert_rewrites(function, *args, changed=None)


def test_a_pool_merges_with_the_kernels_around_it():
    def function(x, a, b):
        return F.conv2d(F.avg_pool2d(F.conv2d(x, a, padding=1), 2), b)

    args = rand(2, 3, 12, 12), rand(4, 3, 3, 3), rand(2, 4, 2, 2)
    region = assert_lifts(function, *args, windows=2)
    assert [len(window.taps) for window in region.expression.terms[0].windows] == [3, 3]
    assert_rewrites(function, *args)


def test_the_mean_of_all_positions_of_a_convolution():
    function = lambda x, a: F.adaptive_avg_pool2d(F.conv2d(x, a), 1)
    args = rand(2, 3, 9, 9), rand(4, 3, 3, 3)
    assert_lifts(function, *args, windows=2)
    assert_rewrites(function, *args)


def test_a_pooled_branch_next_to_a_convolution():
    def branches(x, a, b):
        return F.conv2d(x, a, padding=1) + F.avg_pool2d(F.conv2d(x, b), 3, 1, 1)

    args = rand(2, 3, 8, 8), rand(4, 3, 3, 3), rand(4, 3, 1, 1)
    assert_lifts(branches, *args, terms=2, windows=2)
    assert_rewrites(branches, *args)


def test_resized_branches_are_concatenated_and_mixed():
    def head(a, b, c, u, v, w, mix):
        y = [F.conv2d(x, kernel) for x, kernel in ((a, u), (b, v), (c, w))]
        y = [F.interpolate(one, (8, 8), mode="bilinear", align_corners=False) for one in y]
        return F.conv2d(torch.cat(y, 1), mix)

    images = [rand(1, channels, size, size) for channels, size in ((2, 8), (3, 4), (5, 2))]
    weights = [rand(6, channels, 1, 1) for channels in (2, 3, 5)]
    args = (*images, *weights, rand(4, 18, 1, 1))
    region = assert_lifts(head, *args, terms=3)
    assert sorted(len(term.factors) for term in region.expression.terms) == [3, 5, 5]
    assert_rewrites(head, *args)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: F.avg_pool2d(F.pad(F.conv2d(x, w), (1, 1, 1, 1)), 3, 1),
        lambda x, w: F.avg_pool2d(F.pad(F.conv2d(x, w), (1, 1)), (1, 2)),
        lambda x, w: F.adaptive_avg_pool2d(F.pad(F.conv2d(x, w), (1, 0, 0, 1)), 3),
        lambda x, w: F.interpolate(F.pad(F.conv2d(x, w), (1, 2, -1, 0)), (6, 6), mode="bilinear"),
        lambda x, w: F.conv2d(F.interpolate(x, (9, 9), mode="bilinear")[:, :, 1:-1, 2::3], w),
        lambda x, w: F.conv2d(F.avg_pool2d(x, 2)[..., 1:], w),
    ],
)
def test_crops_and_zeros_around(function):
    args = rand(1, 2, 5, 6), rand(3, 2, 1, 1)
    assert_lifts(function, *args)
    assert_rewrites(function, *args, changed=None)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, w: F.interpolate(F.conv2d(x, w), (9, 9)), "after a convolution that slides"),
        (lambda x, w: F.adaptive_avg_pool2d(F.conv2d(x, w), 5), "after a convolution that slides"),
        (lambda x, w: F.avg_pool2d(F.conv2d(x, w, padding=1), 3, 1, 1), "padding between two kernels"),
        (lambda x, w: F.conv2d(F.interpolate(x, (4, 4), mode="bilinear", antialias=True), w), "antialias"),
    ],
)
def test_refusals(function, reason):
    args = rand(1, 2, 8, 8), rand(3, 2, 3, 3)
    assert reason in refusal(function, *args)
    assert_rewrites(function, *args, changed=None)


def test_a_padded_convolution_after_a_constant_is_its_own_region():
    """The resized bias is constant, and the padding is not that constant."""

    def function(x, a, bias, b):
        return F.conv2d(F.interpolate(F.conv2d(x, a, bias), (8, 8)), b, padding=1)

    args = rand(2, 3, 4, 4), rand(4, 3, 1, 1), rand(4), rand(2, 4, 3, 3)
    found, _ = regions_of(function, *args)
    assert [len(region.expression.terms) for region in found.regions] == [2, 1]
    assert_rewrites(function, *args, changed=None)


def test_integer_images_are_refused():
    x = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    assert "uint8" in refusal(lambda x: F.interpolate(x, (6, 6)), x)
