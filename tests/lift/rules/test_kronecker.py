"""Kronecker, outer, inner and chained products, diagonals, repeats, and what does nothing to a real tensor."""

import pytest
import torch
import torch.nn.functional as F

from tests.lift.helpers import assert_lifts, assert_rewrites, rand, refusal


def product_of(function, *shapes, factors=None, terms=1):
    """A function of leaves of these shapes is one sum, and is rewritten exactly."""
    leaves = [rand(*shape) for shape in shapes]
    assert_lifts(function, *leaves, factors=factors, terms=terms)
    assert_rewrites(function, *leaves, changed=None)


@pytest.mark.parametrize(
    ("function", "shapes", "factors"),
    [
        (lambda x, y: torch.kron(x, y), [(2, 3), (4, 5)], 2),
        (lambda x, y: torch.kron(x, y), [(2, 3, 4), (5, 2)], 2),
        (lambda x, y: torch.kron(x, y), [(3,), (2, 1, 4)], 2),
        (lambda x, y: torch.kron(x, y), [(1, 3, 1), (2, 1, 1)], 2),
        (lambda x, y: torch.outer(x, y), [(3,), (4,)], 2),
        (lambda x, y: torch.ger(x, y), [(3,), (4,)], 2),
        (lambda x, y: torch.inner(x, y), [(2, 3), (4, 3)], 2),
        (lambda x, y: torch.inner(x, y), [(3,), (3,)], 2),
        (lambda x, y: torch.inner(x, y), [(3,), ()], 2),
        (lambda x, y: torch.vdot(x, y), [(3,), (3,)], 2),
        (lambda x, y: torch.linalg.vecdot(x, y), [(2, 3), (3,)], 2),
        (lambda x, y: torch.linalg.vecdot(x, y, dim=0), [(2, 3), (2, 1)], 2),
        (lambda x, y: torch.linalg.matmul(x, y), [(2, 3), (3, 4)], 2),
        (lambda x, y, z: torch.linalg.multi_dot([x, y, z]), [(2, 3), (3, 4), (4, 5)], 3),
        (lambda x, y, z: torch.linalg.multi_dot([x, y, z]), [(3,), (3, 4), (4,)], 3),
        (lambda x, y: torch.linalg.multi_dot([x, y]), [(3,), (3,)], 2),
        (lambda x, y, z: F.bilinear(x, z, y), [(2, 3), (5, 3, 4), (2, 4)], 3),
        (lambda x, y, z: F.bilinear(x, z, y), [(2, 6, 3), (5, 3, 4), (2, 6, 4)], 3),
    ],
)
def test_products(function, shapes, factors):
    product_of(function, *shapes, factors=factors)


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
def test_chain_matmul():
    product_of(lambda x, y, z: torch.chain_matmul(x, y, z), (2, 3), (3, 4), (4, 5), factors=3)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda z, x, y: torch.addmv(z, x, y, beta=2, alpha=0.5), [(2,), (2, 3), (3,)]),
        (lambda z, x, y: torch.addr(z, x, y, alpha=3), [(2, 3), (2,), (3,)]),
        (lambda z, x, y: torch.addbmm(z, x, y), [(3, 5), (2, 3, 4), (2, 4, 5)]),
        (lambda z, x, y: torch.addbmm(z, x, y), [(5,), (2, 3, 4), (2, 4, 5)]),
    ],
)
def test_sums_with_a_product(function, shapes):
    product_of(function, *shapes, terms=2)


def test_a_bilinear_layer_with_a_bias():
    product_of(lambda x, y, w, b: F.bilinear(x, y, w, b), (2, 3), (2, 4), (5, 3, 4), (5,), terms=2)


def test_a_kronecker_factored_layer_is_never_built():
    """`x @ kron(a, b)` takes a and b one after the other."""
    function = lambda x, a, b: x @ torch.kron(a, b)
    args = rand(6, 30), rand(5, 5), rand(6, 6)
    assert_lifts(function, *args, factors=3)
    assert_rewrites(function, *args)


def test_a_sum_of_kronecker_products_is_a_kernel():
    """PHM: sum_n kron(a[n], s[n]), as a linear layer and as a 1x1 convolution of more than two axes."""

    def layer(x, a, s):
        return F.linear(x, torch.kron(a[:, :, 0], s[:, :, 0]) + torch.kron(a[:, :, 1], s[:, :, 1]))

    def conv(x, a, s):
        return F.conv2d(x, torch.kron(a, s), padding=1)

    assert_rewrites(layer, rand(7, 6), rand(3, 2, 2), rand(4, 3, 2), changed=None)
    args = rand(2, 6, 5, 5), rand(2, 2, 1, 1), rand(4, 3, 3, 3)
    assert_lifts(conv, *args, factors=3, windows=2)
    assert_rewrites(conv, *args)


def test_kron_of_what_a_convolution_gives():
    function = lambda x, w, y: torch.kron(F.conv1d(x, w, padding=1), y)
    args = rand(2, 3, 5), rand(4, 3, 3), rand(1, 2, 2)
    assert_lifts(function, *args, factors=3, windows=1)
    assert_rewrites(function, *args, changed=None)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: torch.diagonal(x, 0, 0, 1),
        lambda x: x.diagonal(dim1=-2, dim2=0),
        lambda x: x.repeat(1, 2, 1),
        lambda x: x.repeat(2, 1, 3, 1),
        lambda x: torch.tile(x, (2,)),
        lambda x: torch.tile(x, (3, 1, 1, 2)),
        lambda x: x.repeat_interleave(2, dim=1),
        lambda x: torch.repeat_interleave(x, 3, dim=-1),
        lambda x: torch.repeat_interleave(x, 2),
        lambda x: x.ravel(),
        lambda x: x.mH,
        lambda x: x.conj().resolve_conj().resolve_neg(),
        lambda x: torch.conj_physical(x),
        lambda x: torch.positive(x.real),
        lambda x: torch.diag_embed(x),
        lambda x: torch.diag_embed(x, dim1=0, dim2=2),
    ],
)
def test_views(view):
    function = lambda x, w: view(torch.einsum("ijk,kl->ijl", x, w))
    assert_lifts(function, rand(3, 3, 3), rand(3, 3))
    assert_rewrites(function, rand(3, 3, 3), rand(3, 3), changed=None)


@pytest.mark.parametrize("view", [lambda x: torch.trace(x), lambda x: torch.diag(x), lambda x: x.H])
def test_of_a_matrix(view):
    function = lambda x, w: view(x @ w)
    product_of(function, (3, 4), (4, 3), factors=2)


def test_a_diagonal_matrix_in_the_middle():
    function = lambda u, s, v: u @ torch.diag(s) @ v
    product_of(function, (6, 3), (3,), (3, 5), factors=4)


def test_a_repeat_is_not_worked_on_twice():
    """A product of what is repeated is taken once."""
    function = lambda x, w: x.repeat(1, 8).view(4, 8, 16) @ w
    assert_lifts(function, rand(4, 16), rand(16, 5), factors=2)


def test_noise_between_products():
    lift = torch.ops.aten.lift_fresh_copy.default
    product_of(lambda x, a, b: lift(x @ a).conj() @ b, (2, 3), (3, 4), (4, 5), factors=3)


def test_a_constant_as_export_spells_it():
    """`x @ a @ b + torch.tensor(..)`: the constant is copied, and detached in place."""
    aten = torch.ops.aten
    function = lambda x, a, b, c: x @ a @ b + aten.detach_.default(aten.lift_fresh_copy.default(c))
    assert_lifts(function, rand(2, 3), rand(3, 4), rand(4, 5), rand(5), terms=2)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: torch.diagonal(x, 1), "not the main one"),
        (lambda x: torch.diagonal(x[:2] * 1), "not square"),
        (lambda x: torch.diag_embed(x, 1), "not the main one"),
        (lambda x: torch.conj_physical(torch.view_as_complex(x)), "not linear"),
        (lambda x: torch.view_as_complex(x).mH, "not linear"),
        (lambda x: torch.linalg.vecdot(torch.view_as_complex(x), torch.view_as_complex(x)), "not linear"),
    ],
)
def test_refusals(function, reason):
    found = refusal(function, rand(3, 3, 2) if "linear" in reason else rand(3, 3))
    assert reason in found
