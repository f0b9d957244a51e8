"""Contraction rules against torch."""

import pytest
import torch
import torch.nn.functional as F

from tests.lift.helpers import assert_lifts, rand


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3,)),
        ((2, 3), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (6, 3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 4)),
    ],
)
def test_matmul_broadcasts(left, right):
    assert_lifts(lambda x, y: torch.matmul(x, y), rand(*left), rand(*right), factors=2)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (torch.mm, [(2, 3), (3, 4)]),
        (torch.bmm, [(5, 2, 3), (5, 3, 4)]),
        (torch.mv, [(2, 3), (3,)]),
        (torch.dot, [(3,), (3,)]),
    ],
)
def test_matmul_family(function, shapes):
    assert_lifts(lambda x, y: function(x, y), *(rand(*shape) for shape in shapes), factors=2)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
def test_linear(shape):
    assert_lifts(lambda x, w: F.linear(x, w), rand(*shape), rand(5, 3), factors=2)
    assert_lifts(lambda x, w, b: F.linear(x, w, b), rand(*shape), rand(5, 3), rand(5), terms=2)


def test_addmm():
    assert_lifts(lambda b, x, y: torch.addmm(b, x, y), rand(4), rand(2, 3), rand(3, 4), terms=2)
    assert_lifts(lambda b, x, y: torch.addmm(b, x, y, alpha=2), rand(4), rand(2, 3), rand(3, 4), terms=2)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("i j, j k , k l -> i l", [(2, 3), (3, 4), (4, 5)]),
        ("bi,ij,ik->bjk", [(2, 3), (3, 4), (3, 5)]),
        ("...i,ij->...j", [(2, 4, 3), (3, 5)]),
        ("...i,...i->...", [(2, 4, 3), (4, 3)]),
        ("ii,ij->ij", [(3, 3), (3, 4)]),
        ("ij,ij->ij", [(3, 4), (3, 4)]),
        ("ij,k->ki", [(3, 4), (5,)]),
        ("ij,jk->ik", [(2, 1), (3, 4)]),
    ],
)
def test_einsum(equation, shapes):
    function = lambda *xs: torch.einsum(equation, *xs)  # noqa: E731
    gm_inputs = [rand(*shape) for shape in shapes]
    names = ", ".join(f"x{n}" for n in range(len(shapes)))
    scope = {"function": function}
    assert_lifts(eval(f"lambda {names}: function({names})", scope), *gm_inputs, factors=len(shapes))


@pytest.mark.parametrize("dims", [1, 2, ([0, 2], [1, 0]), ([-1], [0])])
def test_tensordot(dims):
    shapes = {1: [(2, 3), (3, 4)], 2: [(2, 3, 4), (3, 4, 5)]}
    shape = shapes[dims] if isinstance(dims, int) else [(2, 3, 4), (4, 2, 5)]
    if isinstance(dims, int):
        assert_lifts(lambda x, y: torch.tensordot(x, y, dims=dims), *(rand(*s) for s in shape), factors=2)
    else:
        assert_lifts(lambda x, y: torch.tensordot(x, y, dims=dims), *(rand(*s) for s in shape), factors=2)


def test_chain_of_factorised_linear_layers_is_one_region():
    assert_lifts(lambda x, a, b: F.linear(F.linear(x, a), b), rand(4, 8), rand(2, 8), rand(6, 2), factors=3)


def test_merged_ranks_are_split():
    """A tensor-train linear layer: the ranks ride in merged axes between its cores."""

    def function(x, a, b):
        y = x.reshape(2, 4, 3).permute(0, 2, 1).reshape(6, 4) @ a.reshape(4, 10)
        return torch.einsum("bjok,kjp->bop", y.reshape(2, 3, 5, 2), b).reshape(2, 30)

    assert_lifts(function, rand(2, 12), rand(4, 5, 2), rand(2, 3, 6), factors=3)
