"""The command line: `ce-fx calibrate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from ce_fx.tune import calibrate as tuning
from ce_fx.tune import machine, store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None for those of the process.

    Returns:
        The exit status: 0; 1 where nothing could be measured; 2 for bad input, with one line that says what is wrong.
    """
    parser = argparse.ArgumentParser(prog="ce-fx", description=__doc__)
    commands = parser.add_subparsers(required=True, title="commands")
    calibrate = commands.add_parser(
        "calibrate",
        help="measure how fast this machine runs each kind of op",
        description="Measure this machine for some seconds, fit the time model to it, and keep the constants. "
        "It is done by itself when a model first needs it; a quiet machine gives a better fit.",
    )
    calibrate.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ..")
    calibrate.add_argument("--dtype", default="float32", help="float32, float64, bfloat16, complex64, ..")
    calibrate.add_argument("--threads", type=int, help="of torch; a calibration holds for one number")
    calibrate.add_argument("--budget", type=float, default=tuning.BUDGET, help="seconds to measure for, about")
    calibrate.add_argument(
        "--merge", metavar="PATH", help="measure nothing; take over calibrations from a file or folder"
    )
    calibrate.set_defaults(run=_calibrate)
    given = parser.parse_args(arguments)
    try:
        status: int = given.run(given)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"ce-fx: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return status


def _calibrate(given: argparse.Namespace) -> int:
    if given.merge is not None:
        taken = tuning.merge(given.merge)
        print("\n".join(["taken over:", *(f"  {key}" for key in taken)]) if taken else "nothing newer was found")
        return 0
    if given.threads is not None:
        if given.threads < 1:
            raise ValueError(f"--threads must be at least 1, not {given.threads}")
        torch.set_num_threads(given.threads)
    device, dtype = torch.device(given.device), getattr(torch, given.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--dtype must be one of torch's, such as float32, not {given.dtype!r}")
    model = tuning.calibrate(device, dtype, budget=given.budget)
    if not model.calibrated:  # the warning says why
        return 1
    key = machine.key(device, dtype)
    record = store.load(tuning.KIND, key) or {}
    print(key)
    for direction, quality in record.get("held_out", {}).items():
        rank, factor = quality["spearman"], quality["factor"]
        print(f"  {direction}: on held-out ops rank correlation {rank:.3f}, typical error a factor of {factor:.2f}")
    print(f"  kept in {store.folder()}" if record else "  not kept: caches are off")
    return 0


if __name__ == "__main__":
    sys.exit(main())
