"""Counts as written against torch's own counter, on more than 20 models.

The one allowed difference: torch's counter knows matrix products, convolutions and attention, and takes a product of
two tensors position by position (`mul`, with broadcasting or without) for nothing; the report counts one multiply, two
FLOPs, for each element of its result. How many these are is counted here by a dispatch mode of its own. In the backward
they are left out of the comparison, and so are models with a product of more than two tensors in one op.

Two things that torch's counter (2.13) does not count as they are: the fused attention of a CPU counts nothing, so
attention is counted here in its form of two products; and the gradient of a grouped convolution's weights counts as if
it were not grouped, so these are left out of the comparison with a backward.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import ce_fx
from tests.audit.zoo import ZOO, made

aten = torch.ops.aten

POSITION_BY_POSITION = {"cp", "gate", "a scale for each channel"}
GROUPED = {"depthwise separable", "grouped"}
FORWARD_ONLY = {*POSITION_BY_POSITION, *GROUPED, "einsum"}


class Products(TorchDispatchMode):
    """Counts the elements that products of two tensors, position by position, make."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (aten.mul.Tensor, aten.mul_.Tensor) and all(isinstance(a, torch.Tensor) and a.ndim for a in args):
            self.elements += result.numel()
        return result


def counted(model, x, train):
    """(FLOPs by torch's counter, elements of products position by position in the forward)."""
    two_products = sdpa_kernel(SDPBackend.MATH)
    with two_products, Products() as products, FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        y = model(x)
        elements = products.elements
        if train:
            y.sum().backward()
    return counter.get_total_flops(), elements


def test_there_are_20_models():
    assert len(ZOO) >= 20


@pytest.mark.parametrize("name", ZOO)
def test_a_forward_agrees(name):
    model, x = made(name)
    model.eval()
    report = ce_fx.audit(model, (x,), objective="flops")
    flops, elements = counted(model, x, train=False)
    assert report.flops_before == flops + 2 * elements
    assert report.uncounted == () and flops > 0
    assert report.flops_before == sum(layer.flops_before for layer in report.layers)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in FORWARD_ONLY])
def test_forward_and_backward_agree(name):
    """The input needs no gradient; every parameter does."""
    model, x = made(name)
    report = ce_fx.audit(model, (x,), train=True, objective="flops")
    flops, elements = counted(model.train(), x, train=True)
    assert elements == 0
    assert report.flops_before == flops
    parts = [(layer.forward(), layer.backward()) for layer in report.layers]
    assert sum(one.flops_before for pair in parts for one in pair) == flops
    assert sum(forward.flops_before for forward, _ in parts) == counted(model, x, train=False)[0]
