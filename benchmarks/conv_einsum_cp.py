"""The 5-operand CP string against left to right, a hand-ordered chain and the dense convolution."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

import ce_fx
from benchmarks.harness import compare, machine

STRING = "bshw,rt,rs,rh,rw->bthw|hw"


def by_hand(x, wt, ws, wh, ww):
    """1x1 down to the rank, two depthwise strips, 1x1 up: how such a layer is usually written."""
    r = wt.shape[0]
    y = F.conv2d(x, ws[:, :, None, None])
    y = F.conv2d(y, wh[:, None, :, None], padding=(1, 0), groups=r)
    y = F.conv2d(y, ww[:, None, None, :], padding=(0, 1), groups=r)
    return F.conv2d(y, wt.t()[:, :, None, None])


def overhead(links: int) -> float:
    """Microseconds that a cached call of a matrix chain adds to the same torch ops by hand, at sizes where both idle.

    Args:
        links: matrix products in the chain.
    """
    names = "abcdefgh"[: links + 2]
    string = ",".join(map("".join, zip(names, names[1:], strict=False))) + f"->{names[0]}{names[-1]}"
    matrices = [torch.randn(8, 8) for _ in range(links + 1)]
    added = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(1000):
            ce_fx.conv_einsum(string, *matrices)
        middle = time.perf_counter()
        for _ in range(1000):
            y = matrices[0]
            for matrix in matrices[1:]:
                y = torch.mm(y, matrix)
        added.append((middle - start) - (time.perf_counter() - middle))
    return statistics.median(added) * 1e3  # ms per thousand calls are us per call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    b, c, n, r = arguments.batch, arguments.channels, arguments.size, arguments.rank
    x = torch.randn(b, c, n, n)
    factors = [torch.randn(r, c) / r, torch.randn(r, c) / c, torch.randn(r, 3), torch.randn(r, 3)]
    kernel = torch.einsum("rt,rs,rh,rw->tshw", *factors)
    runs = {
        "left to right": lambda: ce_fx.conv_einsum(STRING, x, *factors, optimize="written"),
        "by hand": lambda: by_hand(x, *factors),
        "dense conv2d": lambda: F.conv2d(x, kernel, padding=1),
        "kernel rebuilt + dense": lambda: F.conv2d(x, torch.einsum("rt,rs,rh,rw->tshw", *factors), padding=1),
        "conv_einsum": lambda: ce_fx.conv_einsum(STRING, x, *factors),
        "conv_einsum, flops": lambda: ce_fx.conv_einsum(STRING, x, *factors, objective="flops"),
    }
    print(f"{machine()}\n{STRING}  x {tuple(x.shape)}, rank {r}")
    expected = F.conv2d(x.double(), kernel.double(), padding=1)
    with torch.no_grad():
        timing = compare(runs, arguments.rounds)
        for name, run in runs.items():
            error = (run().double() - expected).abs().max() / expected.abs().max()
            print(f"  {name:24} {timing.seconds[name] * 1e3:8.2f} ms  {timing.ratio[name]:6.2f}x  error {error:.0e}")
        for objective in ("time", "flops"):
            _, info = ce_fx.contract_path(STRING, x, *factors, objective=objective)
            steps = "  ".join(step.string for step in info.steps)
            print(f"  {objective}: {info.opt_cost / 1e6:.0f} M multiply-adds: {steps}")
        print("  overhead of a cached call " + ", ".join(f"{overhead(n):.1f} us ({n} mm)" for n in (1, 2, 4)))


if __name__ == "__main__":
    main()
