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
