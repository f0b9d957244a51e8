"""conv_einsum by hand
===================

``ce_fx.conv_einsum`` is einsum with convolution letters, named after a pipe. It evaluates a CP convolution, five
tensors in one expression, in an order that is planned for their sizes.
"""

import torch
import torch.nn.functional as F

import ce_fx
from examples.timing import compare

torch.manual_seed(0)
CP = "bshw,rt,rs,rh,rw->bthw|hw"
x = torch.randn(4, 64, 28, 28)
wt, ws, wh, ww = torch.randn(16, 64), torch.randn(16, 64), torch.randn(16, 3), torch.randn(16, 3)

# %%
# The plan, before anything runs. Costs are multiply-adds.

path, info = ce_fx.contract_path(CP, x, wt, ws, wh, ww)
print(info)

# %%
# The same by definition: the kernel is put together, and the convolution is torch's.

y = ce_fx.conv_einsum(CP, x, wt, ws, wh, ww)
kernel = torch.einsum("rt,rs,rh,rw->tshw", wt, ws, wh, ww)
expected = F.conv2d(x, kernel, padding=1)
print("largest difference", ((y - expected).abs().max() / expected.abs().max()).item())


def dense() -> torch.Tensor:
    return F.conv2d(x, torch.einsum("rt,rs,rh,rw->tshw", wt, ws, wh, ww), padding=1)


compare({"dense kernel": dense, "conv_einsum": lambda: ce_fx.conv_einsum(CP, x, wt, ws, wh, ww)})

# %%
# Stride, padding and dilation are for all letters or by letter; several kernels may meet on one letter; and it is
# differentiable.

z = ce_fx.conv_einsum("bsh,sth,tuh->buh|h", x[:, :, 0], torch.randn(64, 8, 3), torch.randn(8, 16, 5), padding="valid")
print("two kernels on one letter:", tuple(z.shape))
wt.requires_grad_()
ce_fx.conv_einsum(CP, x, wt, ws, wh, ww, stride={"h": 2, "w": 1}).sum().backward()
print("gradient of wt:", tuple(wt.grad.shape))

# %%
# A mistake names the operand, the letter and both sizes.

try:
    ce_fx.conv_einsum(CP, x, wt, torch.randn(16, 32), wh, ww)
except ce_fx.ExpressionError as error:
    print(error)

# %%
# Plan once, run often.

expression = ce_fx.contract_expression(CP, *(tuple(t.shape) for t in (x, wt, ws, wh, ww)))
print(torch.equal(expression(x, wt, ws, wh, ww), ce_fx.conv_einsum(CP, x, wt, ws, wh, ww)))
