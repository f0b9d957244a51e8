"""A re-parameterised network, served
==================================

RepVGG and its kin train with parallel branches (a 3x3 convolution, a 1x1 convolution and the identity, each with batch
norm) and convert them to one convolution for serving, by hand and by another class. With ``fold=True`` the network
stays as it is: in eval mode the branches are one sum, ce_fx factors it, and the kernel is computed once.
"""

import torch
from torch import nn

import ce_fx
from examples.timing import compare

torch.manual_seed(0)


class RepBlock(nn.Module):
    """Three branches and a nonlinearity (RepVGG, arXiv 2101.03697, figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.norms
        return torch.relu(a(self.conv3(x)) + b(self.conv1(x)) + c(x))


model = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), *(RepBlock(48) for _ in range(4)))
x = torch.randn(4, 3, 32, 32)

# %%
# A little training, so that the statistics are not those of a fresh network.

for _ in range(3):
    model(torch.randn(8, 3, 32, 32))
model.eval()

# %%
# Serving: no gradients, weights that stay. The audit counts what is left in a call.

served = ce_fx.optimize(model, fold=True)
with torch.no_grad():
    expected = model(x)
    print("largest difference", (served(x) - expected).abs().max().item())
    print(ce_fx.report(served))
    compare({"as written": lambda: model(x), "ce_fx, folded": lambda: served(x)})

# %%
# New weights are seen, and the kernels made again: here a checkpoint is loaded.

state = {name: value * 1.01 if value.is_floating_point() else value for name, value in model.state_dict().items()}
with torch.no_grad():
    served.load_state_dict(state)
    print("after load_state_dict", (served(x) - model(x)).abs().max().item())
