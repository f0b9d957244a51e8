"""What runs besides one forward: the modes in which a region is evaluated."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ce_fx.plan.network import Network

Mode: TypeAlias = Literal["forward", "train", "checkpoint", "fold"]
MODES: tuple[Mode, ...] = ("forward", "train", "checkpoint", "fold")


def differentiable(network: Network, mode: str) -> int:
    """The operands that get a gradient in a mode."""
    return network.differentiable if mode in ("train", "checkpoint") else 0


def grads(network: Network, left: int, right: int, mode: str) -> int:
    """How many gradients the backward of a step computes: one for each side that needs one."""
    wanted = differentiable(network, mode)
    return bool(left & wanted) + bool(right & wanted)


def runs(network: Network, subset: int, mode: str) -> int:
    """How often a step runs forward: in mode "checkpoint" twice, but for the last, whose result is not saved.

    `torch.utils.checkpoint` stops to recompute as soon as it has all that the backward reads.
    """
    return 2 if mode == "checkpoint" and subset != network.everything else 1
