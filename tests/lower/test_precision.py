"""Under autocast: features in its dtype, products of weights in their own, cast once."""

import pytest
import torch
from torch.fx import symbolic_trace

from ce_fx.lower.precision import in_precision

HALF = torch.bfloat16


def lowered(function, leaves, weights):
    module = symbolic_trace(function)
    in_precision(module, leaves, weights, HALF)
    return module


@pytest.mark.parametrize("ambient", [True, False])
def test_a_merged_kernel_is_rounded_once(ambient):
    torch.manual_seed(0)
    x, a, b, c = torch.randn(8, 64), *(torch.randn(64, 64) / 8 for _ in range(3))
    module = lowered(lambda x, a, b, c: torch.mm(x, torch.mm(torch.mm(a, b), c)), (x, a, b, c), (1, 2, 3))
    with torch.autocast("cpu", HALF, enabled=ambient):
        result = module(x, a, b, c)
        assert torch.is_autocast_enabled("cpu") is ambient
    assert torch.equal(result, x.to(HALF) @ (a @ b @ c).to(HALF))


def test_a_weight_that_is_in_half_precision_is_merged_in_full():
    torch.manual_seed(0)
    x, a, b = torch.randn(8, 64).to(HALF), torch.randn(64, 64) / 8, (torch.randn(64, 64) / 8).to(HALF)
    module = lowered(lambda x, a, b: torch.mm(x, torch.mm(a, b)), (x, a, b), (1, 2))
    assert torch.equal(module(x, a, b), x @ (a @ b.float()).to(HALF))


def test_what_depends_on_data_is_cast_where_it_comes_in():
    x, y, w = torch.randn(8, 64), torch.randn(64, 64).to(HALF), torch.randn(64, 64)
    module = lowered(lambda x, y, w: torch.mm(torch.mm(x, y), w), (x, y, w), (2,))
    assert torch.equal(module(x, y, w), x.to(HALF) @ y @ w.to(HALF))


def test_a_result_of_weights_only_has_the_dtype():
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    module = lowered(lambda a, b: torch.mm(a, b), (a, b), (0, 1))
    assert torch.equal(module(a, b), (a @ b).to(HALF))
