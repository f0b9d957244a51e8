"""A network of tensorly-torch
===========================

tensorly-torch puts a factorised layer in place of a dense one. The factors save parameters and FLOPs; whether they save
time depends on the order in which they are contracted, which tensorly-torch fixes for each form. ``ce_fx.optimize``
chooses it for the sizes at hand.
"""

import tltorch
import torch
from torch import nn

import ce_fx
from examples.timing import compare

torch.manual_seed(0)

# %%
# Three convolutions in tensor-train form. tensorly-torch's own initial values are far too small for a train, so that
# outputs would vanish; every factor is scaled to keep the variance of what comes in.


def convolution(inputs: int, outputs: int) -> nn.Module:
    layer = tltorch.FactorizedConv(
        inputs, outputs, kernel_size=3, order=2, padding=1, bias=False, factorization="tt", rank=0.25
    )
    with torch.no_grad():
        target = (1 / (9 * inputs)) ** 0.5
        layer.weight.normal_(0, target)
        factors = list(layer.weight.parameters())
        for factor in factors:
            factor.mul_(float(target / layer.weight.to_tensor().std()) ** (1 / len(factors)))
    return layer


model = nn.Sequential(
    nn.Conv2d(3, 64, 3, padding=1),
    nn.ReLU(),
    convolution(64, 64),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    convolution(64, 128),
    nn.BatchNorm2d(128),
    nn.ReLU(),
    convolution(128, 128),
).eval()
x = torch.randn(4, 3, 28, 28)

# %%
# The view ``fast`` shares all Parameters with ``model``; both can be called.

with torch.no_grad():
    fast = ce_fx.optimize(model, (x,))
    print(ce_fx.report(fast))
    print("largest difference", (fast(x) - model(x)).abs().max().item())
    compare({"as written": lambda: model(x), "ce_fx": lambda: fast(x)})

# %%
# Training goes through the same object. The plan is another one: a step is weighed by the gradients that it needs.


def step(net: nn.Module) -> None:
    net.zero_grad()
    net(x).square().mean().backward()


fast.train()
compare({"training as written": lambda: step(model), "training with ce_fx": lambda: step(fast)})
