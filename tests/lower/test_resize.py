"""A resize that a plan has as products with matrices is emitted as the op, whatever the order of memory."""

import pytest
import torch
import torch.nn.functional as F

import ce_fx
from ce_fx.options import Options
from ce_fx.rewrite import rewrite_graph
from tests.lift.helpers import rand

# sizes of the features, and what they are resized to: each axis by another factor
SIZES = {"linear": ((5,), (8,)), "bilinear": ((4, 3), (8, 9)), "trilinear": ((2, 3, 4), (4, 5, 7))}
SIZES |= {"nearest": SIZES["bilinear"], "bicubic": SIZES["bilinear"]}


def head(mode, size, align=None):
    """Channels are mixed after the resize, which costs less before it."""
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    ones = [1] * len(size)

    def function(x, w):
        return conv(F.interpolate(x, size=size, mode=mode, align_corners=align), w.reshape(2, 6, *ones))

    return function


def graph_of(function, *inputs):
    """What gives the fewest multiply-adds; without verification, which would keep what is written."""
    return ce_fx.rewrite(torch.fx.symbolic_trace(function), inputs, objective="flops", tune=False, verify=False)


def resizes(gm):
    return gm.graph.find_nodes(op="call_function", target=F.interpolate)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", SIZES)
def test_it_is_the_op_with_the_values_and_gradients_of_the_matrices(mode, last):
    size, out = SIZES[mode]
    x, w = rand(2, 6, *size).requires_grad_(), rand(2, 6).requires_grad_()
    if last and len(size) == 2:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    function = head(mode, out)
    new = graph_of(function, x, w)
    (node,) = resizes(new)
    assert node.kwargs["mode"] == mode
    assert tuple(node.kwargs["size"]) == out
    got, expected = new(x, w), function(x, w)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert got.stride() == expected.stride()
    if len(size) == 2:  # the result is not copied into the order of memory that it had
        after = list(new.graph.nodes)[list(new.graph.nodes).index(node) :]
        assert not [n for n in after if n.target == "contiguous"]
    seed = torch.randn_like(expected)
    for mine, theirs in zip(*(torch.autograd.grad(y, (x, w), seed) for y in (got, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("align", [False, True])
def test_corners_are_aligned_as_written(align):
    x, w = rand(2, 6, 4, 3), rand(2, 6)
    function = head("bilinear", (8, 9), align)
    new = graph_of(function, x, w)
    (node,) = resizes(new)
    assert node.kwargs["align_corners"] is align
    torch.testing.assert_close(new(x, w), function(x, w), rtol=1e-12, atol=1e-12)


def test_a_resize_to_one_position_that_is_multiplied_with_itself():
    """Planning it failed, and the region ran as written."""

    def function(x, w):
        small = F.interpolate(x, scale_factor=0.5, mode="linear", align_corners=False)
        return torch.einsum("...d,...d,d->...", small, small, w) * 0.2

    inputs = rand(1, 3, 2), rand(1)
    rows = rewrite_graph(torch.fx.symbolic_trace(function), inputs, Options(tune=False)).layers
    assert rows and not [row.reason for row in rows if "ce_fx failed" in row.reason]
