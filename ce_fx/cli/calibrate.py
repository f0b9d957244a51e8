"""`ce-fx calibrate`: measure how fast this machine runs each kind of op."""

from __future__ import annotations

import argparse
from typing import Any

from ce_fx.cli.inputs import dtype_of
from ce_fx.cli.machine import add_machine, set_machine


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command's parser."""
    one: argparse.ArgumentParser = commands.add_parser(
        "calibrate",
        help="measure how fast this machine runs each kind of op",
        description="Measure this machine for some seconds, fit the time model to it, and keep the constants. "
        "It is done by itself when a model first needs it; a quiet machine gives a better fit.",
    )
    add_machine(one)
    one.add_argument("--dtype", default="float32", help="float32, float64, bfloat16, complex64, ..")
    one.add_argument("--budget", type=float, default=5.0, help="seconds to measure for, about")
    one.add_argument("--merge", metavar="PATH", help="measure nothing; take over calibrations from a file or folder")
    return one


def run(given: argparse.Namespace) -> int:
    """Calibrate, and say how well the fit predicts ops that it has not seen.

    Returns:
        0; 1 where nothing could be measured.
    """
    from ce_fx.tune import calibrate, machine, store

    if given.merge is not None:
        taken = calibrate.merge(given.merge)
        print("\n".join(["taken over:", *(f"  {key}" for key in taken)]) if taken else "nothing newer was found")
        return 0
    device, dtype = set_machine(given), dtype_of(given.dtype, "--dtype")
    model = calibrate.calibrate(device, dtype, budget=given.budget)
    if not model.calibrated:  # the warning says why
        return 1
    key = machine.key(device, dtype)
    record = store.load(calibrate.KIND, key) or {}
    print(key)
    for direction, quality in record.get("held_out", {}).items():
        rank, factor = quality["spearman"], quality["factor"]
        print(f"  {direction}: on held-out ops rank correlation {rank:.3f}, typical error a factor of {factor:.2f}")
    print(f"  kept in {store.folder()}" if record else "  not kept: caches are off")
    return 0
