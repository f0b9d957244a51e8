"""`ce-fx demo`: a small network with a factorised convolution and an adapter, audited, optimised and measured.

It needs torch and ce_fx only. All that it prints is of this run, on this machine.
"""

from __future__ import annotations

import argparse
from typing import Any

from ce_fx.cli.machine import add_machine, set_machine

_STORY = """\
A network of two convolutions in tensor-train form and an adapted linear layer, written as most people write them:

  tt1, tt2   64 -> 26 -> 2 -> 26 -> 64 channels: four convolutions (1x1, 3x1, 1x3, 1x1) with nothing between them
  head       x W + x A B, a linear layer with an adapter of rank 4

Each is one multilinear stretch, so that ce_fx may choose another order with the same result.
"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command's parser."""
    one: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="a small true demonstration, in less than a minute",
        description="Audit, optimise and time a small network that is made up here; no other package is needed.",
    )
    add_machine(one)
    return one


def run(given: argparse.Namespace) -> int:
    """Build, audit, optimise, time as written and optimised in turn."""
    import torch

    import ce_fx
    from ce_fx.cli.demo_network import Demo
    from ce_fx.tune.race import race

    device = set_machine(given)
    print(_STORY)
    torch.manual_seed(0)
    model = Demo().eval().to(device)
    x = torch.randn(4, 64, 56, 56, device=device)
    with torch.no_grad():
        fast = ce_fx.optimize(model, (x,))
        print(ce_fx.report(fast))
        written, optimised = model(x), fast(x)
        timed = race([lambda: model(x), lambda: fast(x)], device, 2.0)
    difference = ((optimised - written).abs().max() / written.abs().max()).item()
    before, after = timed.seconds
    print(
        f"\nmeasured in turn: {before * 1e3:.3g} ms as written, {after * 1e3:.3g} ms optimised, {before / after:.2f}x"
    )
    if timed.noise > 0.1:
        print(f"(two halves of the same measurement differ by {timed.noise:.0%}: other work is going on here)")
    print(f"largest difference of the results: {difference:.1e} of the largest value")
    print("\nthe same audit: ce-fx audit ce_fx.cli.demo_network:Demo --input 4x64x56x56")
    print("of your model:  ce-fx audit your.module:factory --input 8x3x224x224")
    return 0
