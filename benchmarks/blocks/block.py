"""A block: what it is, its inputs, and what it is compared with."""

# Submodules and buffers are `Tensor | Module` to the type checker, whatever the class says they are.
# mypy: disable-error-code="no-any-return, no-untyped-call, arg-type, index, union-attr, operator, return-value"

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Run: TypeAlias = "Callable[..., Tensor]"
Bind: TypeAlias = "Callable[[Any], Run]"
Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        name: a path: group, kind, variant.
        make: a new module, a small one for tests if told so; called right after seeding.
        shapes: of the inputs.
        small: of the inputs of a small module.
        orders: by hand, with gradients: what to call, given the module.
        once: by hand, for eval: what depends on weights only is computed when it is given the module.
        mode: where it is meant to be used: "forward" (eval), "train", or "both".
        refused: must stay as it is; a regular expression that the report's reason matches.
    """

    name: str
    make: Callable[[bool], nn.Module]
    shapes: Shapes
    small: Shapes
    orders: Mapping[str, Bind] = field(default_factory=dict)
    once: Mapping[str, Bind] = field(default_factory=dict)
    mode: str = "both"
    refused: str = ""

    def __call__(self, seed: int = 0, small: bool = False) -> tuple[nn.Module, tuple[Tensor, ...], str]:
        """The module, always the same for a seed; its inputs; the mode."""
        torch.manual_seed(seed)
        module = self.make(small)
        lively(module)
        return module, tuple(torch.randn(shape) for shape in (self.small if small else self.shapes)), self.mode


@torch.no_grad()
def lively(module: nn.Module) -> None:
    """Statistics and affine parts of every batch norm as after a training, not as before one."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.5)


def over(order: Callable[..., Tensor]) -> Bind:
    """A function of module and inputs, given the module first."""
    return lambda module: partial(order, module)
