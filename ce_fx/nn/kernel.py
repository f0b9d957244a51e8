"""The dense kernel that factors stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import Tensor

from ce_fx.conv_einsum import conv_einsum
from ce_fx.nn.errors import LayerError
from ce_fx.nn.layout import Layout


@dataclass(frozen=True)
class Kernel:
    """How the dense kernel of a layer is made of its factors.

    Attributes:
        equation: the einsum (or, with a pipe, the conv_einsum) of the factors.
        copies: sizes of the identity matrices that come after the factors in the equation, for letters of input and
            output that are no groups: the kernel is diagonal in them.
        shape: (out channels, in channels / groups, *kernel sizes).
        groups: as of `torch.nn.Conv2d`.
    """

    equation: str
    copies: tuple[int, ...]
    shape: tuple[int, ...]
    groups: int

    def __call__(self, factors: Sequence[Tensor]) -> Tensor:
        """The dense kernel, differentiable."""
        ones = [torch.eye(n, dtype=factors[0].dtype, device=factors[0].device) for n in self.copies]
        if "|" in self.equation:
            # Two correlations one after the other are one with the kernels convolved: flipped and padded fully.
            dense = conv_einsum(self.equation, *factors, *ones, padding="full", flip=True)
        else:
            dense = torch.einsum(self.equation, *factors, *ones)
        return dense.reshape(self.shape)


def kernel_of(layout: Layout) -> Kernel:
    """The dense kernel of a layer as an expression of its factors.

    Returns:
        A callable of the factors.

    Raises:
        LayerError: there are more letters than `torch.einsum` has.
    """
    groups = layout.grouped if layout.conv else ()  # a linear layer has no groups: its kernel is block diagonal
    outputs = layout.outputs[len(groups) :]
    inputs = layout.inputs[len(groups) :]
    shared = [letter for letter in outputs if letter in inputs]
    copy = {letter: f"{letter}'" for letter in shared}
    terms = [*layout.terms, *((letter, copy[letter]) for letter in shared)]
    output = (*groups, *(copy.get(letter, letter) for letter in outputs), *inputs, *layout.conv)
    letters = list(dict.fromkeys((*(x for term in terms for x in term), *output)))
    if len(letters) > len(ascii_letters):
        raise LayerError(
            f"the kernel has {len(letters)} letters and torch.einsum {len(ascii_letters)}; use fewer channel factors"
        )
    names = dict(zip(letters, ascii_letters, strict=False))

    def text(letters: Sequence[str]) -> str:
        return "".join(names[letter] for letter in letters)

    equation = f"{','.join(map(text, terms))}->{text(output)}" + "|" * bool(layout.composed) + text(layout.composed)
    shape = (layout.size(layout.outputs), layout.size(inputs), *layout.shape(layout.conv))
    return Kernel(equation, layout.shape(shared), shape, layout.size(groups))
