"""As a backend of torch.compile
=============================

``torch.compile(model, backend="ce_fx")`` rewrites a graph and hands it to Inductor. No import of ce_fx is needed: the
backend is found by its entry point. Here the inner compiler is left out (``"inner": "eager"``), which needs no C++
compiler and shows the rewrite alone.
"""

import torch
from torch import nn

import ce_fx
from examples.timing import compare

torch.manual_seed(0)


class Separable(nn.Module):
    """A 3x3 convolution as 1x1, 3x1, 1x3, 1x1: ranks 24, 2, 24."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 24, 1, bias=False)
        self.vertical = nn.Conv2d(24, 2, (3, 1), padding=(1, 0), bias=False)
        self.horizontal = nn.Conv2d(2, 24, (1, 3), padding=(0, 1), bias=False)
        self.last = nn.Conv2d(24, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.last(self.horizontal(self.vertical(self.first(x)))))


model = nn.Sequential(Separable(64), Separable(64)).eval()
x = torch.randn(4, 64, 28, 28)

compiled = torch.compile(model, backend="ce_fx", options={"inner": "eager", "objective": "time"})
with torch.no_grad():
    print("largest difference", (compiled(x) - model(x)).abs().max().item())
    compare({"as written": lambda: model(x), "backend ce_fx": lambda: compiled(x)})

# %%
# An option that does not exist is an error that names the nearest.

try:
    torch.compile(model, backend="ce_fx", options={"objectiv": "flops"})(x)
except Exception as error:
    print(next(line for line in str(error).splitlines() if "objectiv" in line))

# %%
# The pure pass works on any FX graph, such as one of ``torch.export``. It prints as code.

gm = ce_fx.rewrite(ce_fx.capture(model, (x,)), (x,), objective="flops")
print(gm.code)
