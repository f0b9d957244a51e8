"""Slices, concatenations and zero padding, by definition and through the whole pass."""

import functools

import pytest
import torch
import torch.nn.functional as F

import ce_fx
from tests.lift.helpers import assert_lifts, rand, refusal, regions_of


def assert_exact(function, *inputs):
    """The pass gives the same values, for every objective; returns the last graph."""
    gm = torch.fx.symbolic_trace(function)
    with torch.no_grad():
        for objective in ("flops", "time"):
            fast = ce_fx.rewrite(gm, inputs, objective=objective, tune=False, verify=False)
            torch.testing.assert_close(fast(*inputs), function(*inputs), rtol=1e-9, atol=1e-9)
    return fast


CASES = {
    "slice a result": (lambda x, a: (x @ a)[:, 1:3], [(3, 4), (4, 5)], 1),
    "slice with a step": (lambda x, a: (x @ a)[:, ::2], [(3, 4), (4, 5)], 1),
    "slice an operand": (lambda x, a: x[:, 1:] @ a[1:], [(3, 4), (4, 5)], 1),
    "slice from behind": (lambda x, a: x[:, -2:] @ a[:2], [(3, 4), (4, 5)], 1),
    "slice of a slice": (lambda x, a: (x @ a)[:, 1:][:, ::2], [(3, 4), (4, 5)], 1),
    "one position": (lambda x, a: (x @ a)[:, 2], [(3, 4), (4, 5)], 1),
    "narrow": (lambda x, a: (x @ a).narrow(1, 1, 2) * 2, [(3, 4), (4, 5)], 1),
    "slice of merged axes": (lambda x, a: (x @ a).reshape(3, 6)[:, :].reshape(3, 2, 3)[:, 1:], [(3, 4), (4, 6)], 1),
    "concatenate and contract": (lambda x, y, a: torch.cat([x, y], 1) @ a, [(3, 2), (3, 3), (5, 4)], 2),
    "concatenate kernels": (lambda x, a, b: x @ torch.cat([a, b], 0), [(3, 5), (2, 4), (3, 4)], 2),
    "concatenate, slice": (lambda x, y: torch.cat([x, y], 1)[:, :2] * y[:, :2], [(3, 2), (3, 3)], 1),
    "concatenate twice": (
        lambda x, y, a: torch.cat([torch.cat([x, y], 1), x], 1) @ a,
        [(3, 2), (3, 3), (7, 4)],
        3,
    ),
    "stack and contract": (
        lambda x, y, a: torch.einsum("nbc,nc->b", torch.stack([x, y]), a),
        [(3, 2), (3, 2), (2, 2)],
        2,
    ),
    "concatenate and sum": (lambda x, y: torch.cat([x, y], 1).sum(1), [(3, 2), (3, 3)], 2),
    "parts of a chunk": (lambda x, a: x.chunk(2, 1)[0] @ a + x.chunk(2, 1)[1] @ a, [(3, 4), (2, 5)], 2),
    "two parts of one split": (
        lambda x, a: (lambda p: p[0] @ a + p[1] @ a)(torch.split(x @ x, [2, 2], 1)),
        [(4, 4), (2, 5)],
        2,
    ),
    "unbind": (lambda x, a: (lambda p: p[0] @ a - p[1] @ a)(x.unbind(0)), [(2, 3, 4), (4, 5)], 2),
    "pad and convolve": (lambda x, w: F.conv1d(F.pad(x, (1, 2)), w), [(2, 3, 6), (4, 3, 3)], 1),
    "crop a convolution": (lambda x, w: F.conv1d(x, w, padding=1)[..., 1:-1], [(2, 3, 6), (4, 3, 3)], 1),
    "slice channels of a convolution": (lambda x, w: F.conv1d(x, w, padding=1)[:, 1:3], [(2, 3, 6), (4, 3, 3)], 1),
    "pad with negative numbers": (lambda x, w: F.conv1d(F.pad(x, (-1, 1)), w), [(2, 3, 6), (4, 3, 3)], 1),
}


@pytest.mark.parametrize("name", CASES)
def test_it_lifts_and_is_exact(name):
    function, shapes, terms = CASES[name]
    inputs = [rand(*shape) for shape in shapes]
    assert_lifts(function, *inputs, terms=terms)
    assert_exact(function, *inputs)


def bordered(x, s, b, w, mean=0.0):
    """What is shifted, then padded, then written over with the shift all around."""
    y = F.pad(x * s + b, (1, 1, 2, 2))
    shift = b.expand(1, 3, 1, 1)
    y = torch.slice_scatter(y, shift.expand(2, 3, 2, 7), 2, 0, 2)
    y = torch.slice_scatter(y, shift.expand(2, 3, 2, 7), 2, -2)
    y = torch.slice_scatter(y, shift.expand(2, 3, 8, 1), 3, 0, 1)
    y = torch.slice_scatter(y, shift.expand(2, 3, 8, 1), 3, 6)
    return F.conv2d(y, w)


def test_a_border_of_what_was_added_leaves_a_padded_convolution():
    inputs = rand(2, 3, 4, 5), rand(3, 1, 1), rand(3, 1, 1), rand(4, 3, 3, 3)
    region = assert_lifts(bordered, *inputs, terms=2)
    assert not region.derived
    assert region.expression.terms[0].windows[0].pad == 2
    assert_exact(bordered, *inputs)


def test_a_border_of_something_else_is_another_term():
    def function(x, w, b):
        y = torch.slice_scatter(F.pad(x, (1, 1)), b.expand(2, 3, 1), 2, 0, 1)
        return F.conv1d(y, w)

    inputs = rand(2, 3, 4), rand(4, 3, 2), rand(3, 1)
    region = assert_lifts(function, *inputs, terms=2)
    assert [leaf.kind for leaf in region.derived] == ["steps"]
    assert_exact(function, *inputs)


def test_a_border_of_another_multiple_is_one_term_with_steps():
    def function(x, b, w):
        y = F.pad(x + 4 * b, (1, 1))
        y = torch.slice_scatter(y, (2 * b).expand(2, 3, 1), 2, 0, 1)
        return F.conv1d(y, w)

    inputs = rand(2, 3, 4), rand(3, 1), rand(4, 3, 2)
    region = assert_lifts(function, *inputs, terms=2)
    (leaf,) = region.derived
    assert leaf.params == ((0.5, 1), (1.0, 4), (0.0, 1))
    assert_exact(function, *inputs)


def test_constants_side_by_side_and_padded():
    def function(x, b, c, w):
        shift = F.pad(torch.cat([b.expand(3, 2), c.expand(3, 4)], 1), (1, 0))
        return (x + shift) @ w

    inputs = rand(3, 7), rand(3, 1), rand(3, 1), rand(7, 2)
    assert_lifts(function, *inputs, terms=3)
    assert_exact(function, *inputs)


def test_a_part_of_what_is_computed_is_not_multiplied_by_zero():
    """It may be infinite where it is written over."""

    def function(x, w, y):
        return torch.slice_scatter(x @ w, y, 1, 0, 1) @ w

    inputs = rand(3, 3), rand(3, 3), rand(3, 1)
    reason = "a part of what is computed is written over"
    assert refusal(function, *inputs) == reason


def test_a_tensor_that_is_written_over_whole():
    assert_lifts(lambda x, y, w: torch.slice_scatter(x, y, 1) @ w, rand(2, 3), rand(2, 3), rand(3, 4), factors=2)


def test_a_concatenation_that_is_the_result_ends_two_regions():
    def function(x, a, b, c):
        return torch.cat([x @ a @ b, x @ c @ b], 1)

    inputs = rand(3, 4), rand(4, 2), rand(2, 5), rand(4, 2)
    found, _ = regions_of(function, *inputs)
    assert [len(region.nodes) for region in found.regions] == [2, 2]
    assert_exact(function, *inputs)


def test_parts_of_a_split_in_two_regions():
    def function(x, a, b, c):
        left, right = torch.functional.split(x @ a, 2, 1)[0], torch.functional.split(x @ a, 2, 1)[1]
        parts = (x @ a).split(2, 1)
        return torch.relu(parts[0] @ b @ c) + torch.relu(parts[1] @ c @ b) + torch.relu(left @ right.t() @ b)

    inputs = rand(2, 3), rand(3, 4), rand(2, 2), rand(2, 2)
    assert_exact(function, *inputs)


def test_a_padded_result_ends_a_region():
    def function(x, a, b):
        return F.pad(x @ a @ b, (1, 1))

    inputs = rand(3, 4), rand(4, 2), rand(2, 5)
    found, _ = regions_of(function, *inputs)
    assert [len(region.nodes) for region in found.regions] == [2]
    assert_exact(function, *inputs)


def test_zeros_between_a_padding_and_a_convolution_that_pads_too():
    def function(x, w):
        return F.conv1d(F.pad(F.conv1d(x, w), (1, 1)), w)

    assert_exact(function, rand(2, 3, 8), rand(3, 3, 3))


def test_segformers_fusion_becomes_a_sum_at_low_resolution():
    def function(x, y, a, b, w):
        up = F.interpolate(F.conv2d(y, b), size=(8, 8), mode="bilinear", align_corners=False)
        return F.conv2d(torch.cat([F.conv2d(x, a), up], 1), w)

    inputs = rand(2, 3, 8, 8), rand(2, 4, 4, 4), rand(6, 3, 1, 1), rand(6, 4, 1, 1), rand(5, 12, 1, 1)
    found, _ = regions_of(function, *inputs)
    (region,) = found.regions
    assert [len(term.factors) for term in region.expression.terms] == [3, 5]
    assert_exact(function, *inputs)


def unrolled(x, a, b, c):
    """CP of a matrix, one rank-1 product after the other."""
    return _rounds(3, x, a, b, c)


def _rounds(rank, x, a, b, c):
    return sum(torch.outer(x @ a[r], b[:, r]) * c[r] for r in range(rank))


def test_an_unrolled_loop_becomes_one_product():
    inputs = rand(4, 5), rand(3, 5), rand(6, 3), rand(3)
    region = assert_lifts(unrolled, *inputs, terms=1, factors=4)
    assert not region.derived
    assert_exact(unrolled, *inputs)


def test_a_long_loop_becomes_one_product_and_as_many_other_products_are_too_many():
    function = lambda x, a, b, c: _rounds(100, x, a, b, c)  # noqa: E731
    (region,) = regions_of(function, rand(4, 5), rand(100, 5), rand(6, 100), rand(100))[0].regions
    assert [len(term.factors) for term in region.expression.terms] == [4] and not region.derived

    def others(x, a):  # a polynomial: every product has another degree
        return functools.reduce(lambda y, _: y * a + x, range(70), x)

    found, _ = regions_of(others, rand(3, 3), rand(3, 3))
    assert max(len(region.expression.terms) for region in found.regions) <= 64


@pytest.mark.parametrize(
    "rows",
    [[(0, 1), (1, 2)], [(0, 0), (1, 1), (2, 2)], [(0, 2), (1, 1), (2, 0)], [(0, 0), (2, 2)], [(1, 0), (2, 1), (0, 2)]],
)
def test_positions_that_do_not_count_up_together_stay_apart(rows):
    def function(x, a, b):
        return sum(torch.outer(x @ a[r], b[q]) for r, q in rows)

    inputs = rand(4, 5), rand(3, 5), rand(3, 6)
    together = all(r - rows[0][0] == n and q - rows[0][1] == n for n, (r, q) in enumerate(sorted(rows)))
    assert_lifts(function, *inputs, terms=1 if together else len(rows))
    assert_exact(function, *inputs)
