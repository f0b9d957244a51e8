"""A tensorly-torch ResNet-18, optimised: the audit, and the speed measured side by side.

python -m examples.demo
"""

from __future__ import annotations

import torch

import ce_fx
from benchmarks.harness import compare, machine
from benchmarks.resnet18 import train_step
from tests.models import factorized_resnet18


def main() -> None:
    """Build, optimise, report, measure."""
    torch.manual_seed(0)
    model = factorized_resnet18("tt", rank=0.25).eval()
    x = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        fast = ce_fx.optimize(model, (x,))
        print(ce_fx.report(fast))
        difference = (fast(x) - model(x)).abs().max() / model(x).abs().max()
        forward = compare({"as written": lambda: model(x), "ce_fx": lambda: fast(x)})
    model.train()
    fast.train()
    train = compare({"as written": train_step(model, x), "ce_fx": train_step(fast, x)})
    print(f"\n{machine()}; medians, measured in turn")
    for name, timing in (("forward", forward), ("train step", train)):
        ms = {key: value * 1e3 for key, value in timing.seconds.items()}
        print(f"{name:11} {ms['as written']:7.1f} ms -> {ms['ce_fx']:7.1f} ms   {timing.ratio['ce_fx']:.2f}x")
    print(f"largest difference {difference:.1e} of the largest output")


if __name__ == "__main__":
    main()
