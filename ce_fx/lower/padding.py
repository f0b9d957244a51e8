"""Padding, cropping and wrapping of the position dims of a convolution, and views of its windows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node


@dataclass(frozen=True)
class Dim:
    """How one position dim is convolved; all in units of the features' own step.

    Attributes:
        stride, dilation: as in torch.
        left: padding on the left; negative for a crop.
        length: positions of the features.
        out: positions of the result.
        kernel: positions of the kernel.
        circular: the padding repeats the features.
        symbolic: the positions of features and result are hints; they differ by a constant where the stride is 1.
    """

    stride: int = 1
    dilation: int = 1
    left: int = 0
    length: int = 1
    out: int = 1
    kernel: int = 1
    circular: bool = False
    symbolic: bool = False

    @property
    def extent(self) -> int:
        """Positions from the first to the last that the kernel reads."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def right(self) -> int:
        """Padding on the right that gives exactly `out` positions; negative for a crop."""
        return (self.out - 1) * self.stride + self.extent - self.length - self.left

    @property
    def symmetric(self) -> int:
        """The part of the padding that torch's convolution can do itself, equal on both sides."""
        if self.circular:
            return 0
        if self.left >= 0 and self._gives_out(self.left, 0, 0):
            return self.left
        return max(0, min(self.left, self.right))

    def outside(self, inside: int) -> tuple[int, int]:
        """What is left to pad (or crop, where negative) before a convolution that pads `inside` on both sides."""
        if inside == self.left and self._gives_out(inside, 0, 0):
            return 0, 0
        left, right = self.left - inside, self.right - inside
        return left, 0 if right < 0 and self._gives_out(inside, left, 0) else right

    def _gives_out(self, inside: int, left: int, right: int) -> bool:
        """Whether torch's output size is `out`: it drops a remainder on the right by itself."""
        span = self.length + left + right + 2 * inside - self.extent
        return span >= 0 and span // self.stride + 1 == self.out


@dataclass(frozen=True)
class Pad:
    """How one dim of a given length is padded, or cropped where negative; circular repeats the tensor, else zeros.

    The length may be a hint, of a symbolic size.
    """

    length: int
    left: int = 0
    right: int = 0
    circular: bool = False
    symbolic: bool = False


def cropped_or_padded(graph: Graph, node: Node, pads: Sequence[Pad]) -> Node:
    """Pad the last dims of a tensor; negative amounts crop, which is a view.

    Args:
        graph: where to emit.
        node: a tensor whose last `len(pads)` dims are padded.
        pads: for each of them.
    """
    count = len(pads)
    zeros = []
    for place, pad in enumerate(pads):
        if pad.circular and (pad.left or pad.right):
            node = _wrapped(graph, node, place - count, pad)
        first, last = max(0, -pad.left), min(pad.length, pad.length + pad.right)
        kept = pad.length if pad.circular else max(0, last - first)
        if kept < pad.length and pad.symbolic:
            kept_part = slice(max(0, -pad.left), min(0, pad.right) or None)
            where: Any = (Ellipsis, kept_part, *(slice(None) for _ in range(count - place - 1)))
            node = graph.call_function(operator.getitem, (node, where))
        elif kept < pad.length:
            node = graph.call_function(torch.narrow, (node, place - count, min(first, pad.length), kept))
        whole = kept if pad.circular else pad.left + pad.length + pad.right
        left = 0 if pad.circular else max(0, pad.left if kept else min(pad.left, whole))
        zeros.append((left, whole - kept - left))
    amounts = [amount for pair in reversed(zeros) for amount in pair]
    while len(amounts) > 2 and amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    return graph.call_function(torch.nn.functional.pad, (node, amounts)) if any(amounts) else node


def _wrapped(graph: Graph, node: Node, dim: int, pad: Pad) -> Node:
    """Positions `-left .. length + right` of the endless repetition of a tensor along a dim."""
    if pad.symbolic:
        return _wrapped_once(graph, node, dim, pad)
    pieces = []
    position, end = -pad.left, pad.length + pad.right
    while position < end:
        start = position % pad.length
        size = min(pad.length - start, end - position)
        whole = start == 0 and size == pad.length
        pieces.append(node if whole else graph.call_function(torch.narrow, (node, dim, start, size)))
        position += size
    return graph.call_function(torch.cat, (pieces, dim)) if len(pieces) > 1 else pieces[0]


def _wrapped_once(graph: Graph, node: Node, dim: int, pad: Pad) -> Node:
    """The same of a symbolic length that is no shorter than what is repeated of it on a side."""
    inside = slice(max(0, -pad.left), min(0, pad.right) or None)
    parts = [slice(-pad.left, None)] if pad.left > 0 else []
    parts += [inside] + ([slice(None, pad.right)] if pad.right > 0 else [])
    rest = tuple(slice(None) for _ in range(-dim - 1))
    pieces = []
    for part in parts:
        where: Any = (Ellipsis, part, *rest)
        whole = part == slice(0, None)
        pieces.append(node if whole else graph.call_function(operator.getitem, (node, where)))
    return graph.call_function(torch.cat, (pieces, dim)) if len(pieces) > 1 else pieces[0]


def unfolded(graph: Graph, node: Node, dim: int, how: Dim) -> Node:
    """A view of a (padded) tensor's windows along a dim: the dim has `out` positions, a last new one the kernel's."""
    node = graph.call_method("unfold", (node, dim, how.extent, how.stride))
    if how.dilation == 1:
        return node
    every: Any = (Ellipsis, slice(None, None, how.dilation))
    return graph.call_function(operator.getitem, (node, every))
