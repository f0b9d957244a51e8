"""Formulas of ATen ops: multiply-adds are those of the definition, and whatever moves bytes is counted."""

import pytest
import torch
import torch.nn.functional as F

from ce_fx.capture.reading import read
from ce_fx.lower.gradients import gradients_of
from ce_fx.lower.price import ops_of_nodes


def priced(function, *shapes):
    """The ops that a function of tensors is priced as."""
    gm = torch.fx.symbolic_trace(function)
    reading = read(gm, [torch.randn(shape) for shape in shapes])
    assert not reading.failures
    return ops_of_nodes([op for group in reading.ops.values() for op in group])


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (lambda x, y: torch.kron(x, y), [(2, 3), (4, 5)], 120),
        (lambda x, w: F.conv1d(x, w, groups=2), [(2, 6, 9), (4, 3, 3)], 2 * 4 * 7 * 3 * 3),
        (lambda x, w: F.conv_transpose1d(x, w, groups=2), [(2, 6, 9), (6, 5, 3)], 2 * 6 * 9 * 5 * 3),
        (lambda x, y: torch.outer(x, y), [(3,), (4,)], 12),
        (lambda z, x, y: torch.addr(z, x, y), [(3, 4), (3,), (4,)], 12),
        (lambda x, y: torch.inner(x, y), [(2, 3), (4, 3)], 24),
        (lambda x, y: torch.inner(x, y), [(2, 3), ()], 6),
        (lambda x, y: torch.vdot(x, y), [(3,), (3,)], 3),
        (lambda x, y: torch.linalg.vecdot(x, y), [(2, 3), (3,)], 6),
        (lambda x, y: torch.linalg.matmul(x, y), [(2, 3), (3, 4)], 24),
        (lambda z, x, y: torch.addmv(z, x, y), [(2,), (2, 3), (3,)], 6),
        (lambda z, x, y: torch.addbmm(z, x, y), [(3, 5), (2, 3, 4), (2, 4, 5)], 120),
        (lambda x, y: F.interpolate(x + y, (5, 5), mode="bilinear"), [(1, 2, 3, 3), (1, 2, 3, 3)], 4 * 50),
        (lambda x, y: F.interpolate(x + y, 5, mode="linear"), [(1, 2, 3), (1, 2, 3)], 2 * 10),
        (lambda x: F.interpolate(x, (5, 5), mode="bicubic"), [(1, 2, 3, 3)], 16 * 50),
        (lambda x: F.interpolate(x, (5, 5)), [(1, 2, 3, 3)], 0),
        (lambda x, y, w: F.bilinear(x, y, w), [(2, 3), (2, 4), (5, 3, 4)], 2 * 5 * 3 * 4 + 2 * 5 * 4),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
            [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)],
            6 * 5 * 7 * (8 + 4),
        ),
    ],
)
def test_multiply_adds(function, shapes, macs):
    assert sum(op.macs for op in priced(function, *shapes)) == macs


@pytest.mark.parametrize(
    ("shapes", "macs"),
    [
        ([(10, 100), (100, 5), (5, 50)], 10 * 100 * 5 + 10 * 5 * 50),
        ([(50, 5), (5, 100), (100, 10)], 5 * 100 * 10 + 50 * 5 * 10),
        ([(7,), (7, 3), (3,)], 7 * 3 + 3),
    ],
)
def test_a_chain_is_multiplied_in_its_best_order(shapes, macs):
    names = ", ".join("xyz")
    function = eval(f"lambda {names}: multi_dot([{names}])", {"multi_dot": torch.linalg.multi_dot})
    assert sum(op.macs for op in priced(function, *shapes)) == macs


@pytest.mark.parametrize(
    ("function", "elements"),
    [
        (lambda x: F.avg_pool2d(x, 2), 5 * 2 * 4),
        (lambda x: F.avg_pool2d(x, (3, 2), 1), 7 * 2 * 2 * 3),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 17 * 2),
        (lambda x: F.adaptive_avg_pool2d(x, 3), 5 * 2 * 9),
        (lambda x: F.interpolate(x, (8, 8)), 2 * 2 * 64),
        (lambda x: F.interpolate(x, (8, 8), mode="area"), 2 * 2 * 64),
        (lambda x: x.mean((2, 3)), 32 + 2),
        (lambda x: x.repeat(1, 3, 1, 1), 2 * 96),
        (lambda x: x.repeat_interleave(2, 1), 2 * 64),
        (lambda x: torch.diag_embed(x), 2 * 128),
        (lambda x: torch.stack([x, x]), 2 * 64),
        (lambda x: torch.eye(4, dtype=x.dtype), 16),
        (lambda x: x.mul_(2), 64),
        (lambda x: x.add_(1), 64),
    ],
)
def test_bytes_moved(function, elements):
    (op,) = priced(function, (1, 2, 4, 4))
    assert (op.macs, op.elements) == (0, elements)


def test_views_are_free():
    assert not priced(lambda x: x.diagonal(0, 1, 2).mH, (2, 4, 4))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_convolution_of_decompositions_costs_what_it_stands_for(transposed):
    shapes = [(2, 6, 9, 8), (6, 2, 3, 2) if transposed else (4, 3, 3, 2)]
    written = F.conv_transpose2d if transposed else F.conv2d
    more = {"output_padding": 0} if transposed else {}
    geometry = ([2, 1], [1, 0], [1, 2], transposed, [0, 0], 2)
    ours = priced(lambda x, w: torch.ops.aten.convolution.default(x, w, None, *geometry), *shapes)
    assert ours == priced(lambda x, w: written(x, w, None, [2, 1], [1, 0], dilation=[1, 2], groups=2, **more), *shapes)
    assert ours[0].macs > 0


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_bias_has_no_product_in_the_backward_of_a_convolution(decomposed):
    def written(x, w, b):
        if decomposed:
            return torch.ops.aten.convolution.default(x, w, b, [1], [0], [1], False, [0], 1)
        return F.conv1d(x, w, b)

    shapes = [(2, 3, 9), (4, 3, 3), (4,)]
    leaves = [torch.randn(shape, requires_grad=shape != (2, 3, 9)) for shape in shapes]  # data needs none
    reading = read(torch.fx.symbolic_trace(written), leaves)
    (op,) = (op for group in reading.ops.values() for op in group)
    assert gradients_of(op) == 1


def test_what_a_matmul_adds_to_takes_an_addition_but_a_bias_nothing():
    product, added = priced(lambda z, x, y: torch.addmm(z, x, y), (3, 5), (3, 4), (4, 5))
    assert (product, added) == priced(lambda z, x, y: x @ y + z, (3, 5), (3, 4), (4, 5))
    assert priced(lambda z, x, y: torch.addmm(z, x, y), (5,), (3, 4), (4, 5)) == (product,)
