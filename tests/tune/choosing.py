"""A layer that has something to choose, and what is chosen for it."""

import torch

import ce_fx
from ce_fx.plan.time_model import TimeModel
from tests.models import factorized_conv

X = (2, 16, 20, 20)


def without_calibration(device, dtype, *, measure=False, verbose=None):
    return TimeModel.default(device, itemsize=dtype.itemsize, complex_numbers=dtype.is_complex)


def layer(factorization="tt"):
    torch.manual_seed(0)
    return factorized_conv(16, 16, factorization=factorization, rank=0.5)


def report_of(model, grad=False, **options):
    x = torch.randn(X)
    with torch.set_grad_enabled(grad):
        fast = ce_fx.optimize(model, (x,), **{"tune": True, **options})
    return ce_fx.report(fast).layers[0]
