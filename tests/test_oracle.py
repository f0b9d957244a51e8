"""The oracle against torch's own convolutions and einsum."""

import pytest
import torch
import torch.nn.functional as F

from tests import oracle


def rand(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_conv2d(stride, dilation, padding):
    x, w = rand(2, 3, 9, 8), rand(4, 3, 3, 2)
    got = oracle.conv_einsum("bshw,tshw->bthw|hw", x, w, stride=stride, dilation=dilation, padding=padding)
    torch.testing.assert_close(got, F.conv2d(x, w, stride=stride, dilation=dilation, padding=padding))


def test_conv1d_and_conv3d():
    x, w = rand(2, 3, 9), rand(4, 3, 3)
    torch.testing.assert_close(oracle.conv_einsum("bsl,tsl->btl|l", x, w, padding="valid"), F.conv1d(x, w))
    x, w = rand(1, 2, 5, 4, 6), rand(3, 2, 2, 3, 3)
    got = oracle.conv_einsum("bsdhw,tsdhw->btdhw|dhw", x, w, padding={"d": 1, "h": 0, "w": (2, 2)})
    torch.testing.assert_close(got, F.conv3d(x, w, padding=(1, 0, 2)))


def test_groups():
    x, w = rand(2, 6, 7), rand(4, 3, 3)
    got = oracle.conv_einsum("bgsl,gtsl->bgtl|l", x.reshape(2, 2, 3, 7), w.reshape(2, 2, 3, 3), padding=1)
    torch.testing.assert_close(got.reshape(2, 4, 7), F.conv1d(x, w, padding=1, groups=2))


def test_circular():
    x, w = rand(2, 3, 7), rand(4, 3, 3)
    expected = F.conv1d(F.pad(x, (1, 1), mode="circular"), w)
    torch.testing.assert_close(oracle.conv_einsum("bsl,tsl->btl|l", x, w, padding_mode="circular"), expected)


def test_flip_is_polynomial_multiplication():
    a, b = rand(5), rand(3)
    product = torch.zeros(7, dtype=torch.float64)
    for i in range(5):
        for j in range(3):
            product[i + j] += a[i] * b[j]
    torch.testing.assert_close(oracle.conv_einsum("h,h->h|h", a, b, padding="full", flip=True), product)


def test_two_kernels_on_a_letter_are_two_unpadded_convolutions():
    x, v, w = rand(2, 11), rand(3), rand(2)
    inner = F.conv1d(x[:, None], v[None, None], dilation=2)
    expected = F.conv1d(inner, w[None, None], dilation=3)[:, 0]
    got = oracle.conv_einsum("bh,h,h->bh|h", x, v, w, padding="valid", dilation={(1, "h"): 2, (2, "h"): 3})
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("string", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ii->i", [(3, 3)]),
        ("...i,ij->...j", [(2, 4, 3), (3, 5)]),
        ("...i,...i->...", [(2, 4, 3), (4, 3)]),
        ("ij,jk->ik", [(2, 1), (3, 4)]),
        ("ab,ab,ab->", [(2, 3)] * 3),
    ],
)
def test_einsum(string, shapes):
    tensors = [rand(*shape) for shape in shapes]
    torch.testing.assert_close(oracle.conv_einsum(string, *tensors), torch.einsum(string, *tensors))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("stride", "padding"), [(1, "same"), (2, "same"), (3, (0, 4)), (1, "full"), (2, "valid"), (2, 7)]
)
def test_the_definition_written_out(padding_mode, flip, stride, padding):
    size, first, second, d1, d2 = 9, 3, 2, 2, 3
    x, v, w = rand(2, size), rand(2, first), rand(second)
    reach = d1 * (first - 1) + d2 * (second - 1)
    left, right = {"same": (3, 4), "full": (7, 7), "valid": (0, 0), 7: (7, 7), (0, 4): (0, 4)}[padding]
    out = (size + left + right - reach - 1) // stride + 1
    expected = torch.zeros(2, out, dtype=torch.float64)
    for b in range(2):
        for o in range(out):
            for j in range(first):
                for k in range(second):
                    i = stride * o - left + d1 * j + d2 * k
                    if padding_mode == "circular":
                        i %= size
                    elif not 0 <= i < size:
                        continue
                    taps = v[b, first - 1 - j] * w[second - 1 - k] if flip else v[b, j] * w[k]
                    expected[b, o] += x[b, i] * taps
    options = {"stride": {"h": stride}, "padding": {"h": padding}, "dilation": {"h": d1, (2, "h"): d2}}
    string = "bh,bh,h->bh|h"
    got = oracle.conv_einsum(string, x, v, w, **options, padding_mode=padding_mode, flip=flip)
    torch.testing.assert_close(got, expected)
    assert oracle.output_shape(string, x.shape, v.shape, w.shape, **options) == tuple(expected.shape)


def test_the_largest_operand_is_slid_over_and_the_first_of_equals():
    x, w, other = rand(2, 4), rand(5, 2, 9), rand(2, 9)
    expected = F.conv1d(w, x[:, None], groups=2)  # x is the kernel
    torch.testing.assert_close(oracle.conv_einsum("sh,tsh->tsh|h", x, w, padding="valid"), expected)
    kernel_is_second = F.conv1d(F.pad(w, (4, 4)), other[:, None], groups=2)
    torch.testing.assert_close(oracle.conv_einsum("tsh,sh->tsh|h", w, other), kernel_is_second)
    kernel_is_first = F.conv1d(
        F.pad(other[None], (4, 4)).expand(5, 2, 17).reshape(1, 10, 17), w.reshape(10, 1, 9), groups=10
    )
    torch.testing.assert_close(oracle.conv_einsum("sh,tsh->tsh|h", other, w), kernel_is_first.reshape(5, 2, 9))


def test_named_letters_and_what_follows_the_pipe():
    x, w = rand(2, 3, 7, 6), rand(4, 3, 3, 2)
    expected = F.conv2d(x, w, stride=(2, 1), padding=(1, 0))
    options = {"stride": {"(h1)": 2}, "padding": {"h1": 1, "w": 0}}
    for pipe in ("(h1)w", "(h1), w", " w(h1)"):
        got = oracle.conv_einsum(f"b(s)(h1)w, t s (h1) w -> b t(h1)w | {pipe}", x, w, **options)
        torch.testing.assert_close(got, expected)


def test_ellipsis_and_broadcast_beside_a_convolution():
    x, w = rand(1, 5, 3, 7), rand(2, 1, 4, 3, 3)
    expected = torch.stack([F.conv1d(x[0], w[n, 0], padding=1) for n in range(2)])
    torch.testing.assert_close(oracle.conv_einsum("...sl,...tsl->...tl|l", x, w), expected)
    assert oracle.output_shape("...sl,...tsl->...tl|l", x.shape, w.shape) == (2, 5, 4, 7)


def test_complex_is_linear_in_each_part():
    x, w = rand(2, 3, 7, dtype=torch.complex128), rand(4, 3, 3)
    expected = torch.complex(F.conv1d(x.real, w, padding=1), F.conv1d(x.imag, w, padding=1))
    torch.testing.assert_close(oracle.conv_einsum("bsl,tsl->btl|l", x, w), expected)


def test_any_dtype_is_judged_in_float64():
    x, w = rand(2, 3, 7, dtype=torch.float32), rand(4, 3, 3, dtype=torch.float16)
    expected = F.conv1d(x.double(), w.double(), padding=1)
    torch.testing.assert_close(oracle.conv_einsum("bsl,tsl->btl|l", x, w), expected)


def test_gradients():
    x, w = rand(2, 3, 6, 7).requires_grad_(), rand(4, 3, 3, 2).requires_grad_()
    got = oracle.conv_einsum("bshw,tshw->bthw|hw", x, w, stride=2, padding=1)
    expected = F.conv2d(x, w, stride=2, padding=1)
    weight = torch.randn_like(expected)
    mine = torch.autograd.grad((got * weight).sum(), (x, w))
    torch.testing.assert_close(mine, torch.autograd.grad((expected * weight).sum(), (x, w)))


def test_no_positions_and_nothing_to_sum():
    empty = oracle.conv_einsum("bsl,tsl->btl|l", rand(2, 0, 7), rand(4, 0, 3))
    torch.testing.assert_close(empty, torch.zeros(2, 4, 7, dtype=torch.float64))
    assert oracle.conv_einsum("ab,ab->ab", rand(0, 3), rand(1, 3)).shape == (0, 3)
    assert oracle.output_shape("ab,ab->ab", (0, 3), (1, 3)) == (0, 3)
