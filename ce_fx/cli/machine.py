"""The options `--device` and `--threads`, for every command that runs something."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ce_fx.cli.mistake import Mistake, one_line

if TYPE_CHECKING:
    import torch


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the two options."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, .., or meta (default: cpu)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")


def set_machine(given: argparse.Namespace) -> torch.device:
    """Set the number of threads, and see that the device is there.

    Raises:
        Mistake: a number of threads below 1, or a device that torch does not know or cannot reach.
    """
    import torch

    if given.threads is not None:
        if given.threads < 1:
            raise Mistake(f"--threads must be at least 1, not {given.threads}")
        torch.set_num_threads(given.threads)
    try:
        device = torch.device(given.device)
    except RuntimeError:
        raise Mistake(
            f"--device {given.device!r} is no device of torch's; give cpu, cuda, cuda:1, mps or xpu"
        ) from None
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each kind of device fails in a way of its own
        raise Mistake(
            f"--device {given.device} cannot be used here ({one_line(error)}); --device cpu always can"
        ) from error
    return device
