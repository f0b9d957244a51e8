"""PEFT: training a LoRA adapter, and merging it
=============================================

LoRA computes ``x W + s x A B``. Both products are of the same ``x``, so there are two orders: the bypass as it is
written, or one product with the merged ``W + s A B``. Which is faster depends on the rank, the number of rows, and on
whether gradients are needed; ce_fx decides that layer by layer, and says which it took.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import ce_fx
from examples.timing import compare

torch.manual_seed(0)


class Mixer(nn.Module):
    """Two linear layers over 512 features."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(512, 1024), nn.Linear(1024, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


model = get_peft_model(Mixer(), LoraConfig(r=8, lora_alpha=16, target_modules=["up", "down"]))
x = torch.randn(64, 512)

# %%
# Optimise once, train as usual: the optimiser holds the same Parameters, made before or after.

fast = ce_fx.optimize(model)
optimiser = torch.optim.AdamW([p for p in fast.parameters() if p.requires_grad], lr=1e-3)
target = torch.randn(64, 512)
for number in range(5):
    optimiser.zero_grad()
    loss = nn.functional.mse_loss(fast(x), target)
    loss.backward()
    optimiser.step()
    print(f"step {number}: loss {loss.item():.4f}")

print(ce_fx.report(fast))

# %%
# Adapters are switched off and on by Python flags, which Dynamo's guards follow.

with torch.no_grad():
    fast.eval()
    with_adapter = fast(x)
    with fast.disable_adapter():
        without = fast(x)
    with model.disable_adapter():
        assert torch.allclose(without, model(x), atol=1e-5)
print("the adapter changes the output by", (with_adapter - without).abs().max().item())

# %%
# For serving, ``fold=True`` computes what depends on weights only once, outside the compiled graph. PEFT's own
# ``merge_adapter`` writes to ``weight.data``, which leaves no trace: after it, ``ce_fx.refresh`` is needed.

served = ce_fx.optimize(model, fold=True)
with torch.no_grad():
    served.eval()
    print("folded against as written", (served(x) - model(x)).abs().max().item())
    compare({"as written": lambda: model(x), "ce_fx, folded": lambda: served(x)})
    model.merge_adapter()
    ce_fx.refresh(served)
    print("after merge_adapter", (served(x) - model(x)).abs().max().item())
    model.unmerge_adapter()
    ce_fx.refresh(served)
