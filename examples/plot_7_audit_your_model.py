"""Audit your own model
====================

``ce_fx.audit`` says what ce_fx finds in a model, what it would change and what that would gain; the model is afterwards
what it was. "Nothing to do here" is a frequent answer, and worth knowing before anything is changed.
"""

import json

import torch
from torch import nn

import ce_fx

torch.manual_seed(0)


class Yours(nn.Module):
    """Put your model here: this one has a layer that gains, one that doesn't, and one that can't."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.squeeze = nn.Conv2d(64, 4, 1, bias=False)
        self.spread = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), bias=False)
        self.expand = nn.Conv2d(4, 64, 1)
        self.norm = nn.GroupNorm(4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = self.norm(self.expand(self.spread(self.squeeze(x))))
        return self.head(x.mean((2, 3)))


model, x = Yours().eval(), torch.randn(4, 3, 32, 32)

# %%
# The table: one row for each multilinear stretch, by the module path that you wrote.

report = ce_fx.audit(model, (x,))
print(report)

# %%
# The same as data. Counts are exact integers; times are in seconds, measured or predicted.

for layer in report.layers:
    flops = f"{layer.flops_before:>12,} -> {layer.flops_after:>12,}"
    print(f"{layer.name:20} {layer.decision:10} {flops}  {layer.expression}")
print(sorted(json.loads(report.to_json())))

# %%
# With ``train=True`` forward and backward are counted.

print(ce_fx.audit(model, (x,), train=True).summary())

# %%
# From the command line, for a file of yours::
#
#     ce-fx audit path/to/file.py:Yours --input 4x3x32x32 --plans
#     ce-fx audit package.module:factory --kwargs '{"width": 64}' --input 4x3x32x32 --output audit.html
