"""Models with regions, and what is kept of them for the backward."""

import pytest
import torch
from torch import nn

from tests.models import factorized_conv
from tests.test_autocast import MODELS, Factorised2d, Rebuilt

OPTIONS = {"tune": False, "objective": "flops"}


class Between(nn.Module):
    """Two regions and what is between them."""

    def __init__(self, between=torch.relu):
        super().__init__()
        self.a, self.b, self.between = Factorised2d(), Rebuilt(), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


class Bottleneck(nn.Module):
    """Best as it is written: there is nothing to merge."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(96, 4, bias=False), nn.Linear(4, 96, bias=False)

    def forward(self, x):
        return self.b(self.a(x))


def tensorly():
    pytest.importorskip("tltorch")
    return nn.Sequential(*(factorized_conv(16, 16, factorization=form) for form in ("tt", "tucker")))


CASES = {
    **{name: (kind, shape) for name, (kind, shape) in MODELS.items()},
    "between": (Between, (4, 16, 12, 12)),
    "bottleneck": (Bottleneck, (64, 96)),
    "tensorly": (tensorly, (2, 16, 10, 10)),
}


def made(name):
    kind, shape = CASES[name]
    model = kind().double()
    return model, torch.randn(shape, dtype=torch.float64, requires_grad=True)


def gradients(run, model, x):
    """A value, its gradients, and the bytes kept for the backward beside inputs, weights and the result."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run(x)
    for tensor in (x, y, *model.parameters()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    bytes_kept = sum(kept.values())
    weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y)
    return [y, *torch.autograd.grad(y, [x, *model.parameters()], weights)], bytes_kept


def same(found, expected, tight=1e-10):
    for mine, true in zip(found, expected, strict=True):
        assert mine.dtype == true.dtype
        assert float((mine - true).detach().abs().max()) <= tight * max(1.0, float(true.abs().max()))
