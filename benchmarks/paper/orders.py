"""Ways to evaluate a factorised layer, written by hand: from left to right, and with its kernel rebuilt.

They read the layer's string and its geometry, and nothing else of ce_fx: no planner, no lowering.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from string import ascii_letters
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ce_fx.nn import ConvEinsum

Letters = tuple[str, ...]

_CONVOLVE = (None, F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class Read:
    """The string of a layer: input, factors and output as letters, and the letters after the pipe."""

    input: Letters
    factors: tuple[Letters, ...]
    output: Letters
    conv: Letters


def read(string: str) -> Read:
    """`"bsh,rs,rh,rt->bth|h"`, taken apart."""
    body, _, pipe = string.replace(" ", "").partition("|")
    inputs, _, output = body.partition("->")
    first, *factors = inputs.split(",")
    return Read(_letters(first), tuple(map(_letters, factors)), _letters(output), _letters(pipe))


def _letters(term: str) -> Letters:
    return tuple(found.strip("()") for found in re.findall(r"\(\w+\)|\w", term))


def left_to_right(layer: ConvEinsum, x: Tensor) -> Tensor:
    """The string evaluated factor by factor, each by one torch op: an einsum or a convolution.

    A factor that shares no letter with what there is would only make an outer product. It waits until it shares one,
    which is kinder than the order of the string.

    Args:
        layer: whose padding mode is zeros, and whose convolution letters are in one factor each.
        x: (batch, channels, *spatial); of a linear layer, (.., features).
    """
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode {layer.padding_mode!r} is not evaluated here")
    parts, dims = read(layer.string), len(layer.kernel_size)
    sizes = {letter: size for term, f in _pairs(parts, layer) for letter, size in zip(term, f.shape, strict=True)}
    channels = [sizes[letter] for letter in parts.input[1 : len(parts.input) - dims]]
    lead = x.shape[: x.dim() - dims - 1]
    y, letters = x.reshape(-1, *channels, *x.shape[x.dim() - dims :]), parts.input
    waiting = _pairs(parts, layer)
    while waiting:
        number = next((n for n, (term, _) in enumerate(waiting) if set(term) & set(letters)), 0)
        term, factor = waiting.pop(number)
        kept = {*parts.output, *(letter for other, _ in waiting for letter in other)}
        y, letters = _step(y, letters, factor, term, kept, _geometry(layer, parts.conv))
    y = y.permute([letters.index(letter) for letter in parts.output])
    y = y.reshape(*lead, layer.out_channels, *y.shape[y.dim() - dims :])
    return y if layer.bias is None else y + layer.bias.reshape(-1, *(1 for _ in range(dims)))


def checkpointed(layer: ConvEinsum, x: Tensor) -> Tensor:
    """From left to right, with nothing kept of the layer for its backward but x."""
    result: Tensor = checkpoint(left_to_right, layer, x, use_reentrant=False)
    return result


def rebuilt(layer: ConvEinsum, x: Tensor) -> Tensor:
    """The dense kernel by one torch.einsum, whose order is opt_einsum's, and one dense layer."""
    dims = len(layer.kernel_size)
    equation, groups = rebuilding(layer.string, dims)
    kernel = torch.einsum(equation, *layer.factors)
    count = prod(kernel.shape[:groups])
    kernel = kernel.reshape(layer.out_channels, layer.in_channels // count, *layer.kernel_size)
    if not dims:
        return F.linear(x, kernel, layer.bias)
    convolve: Any = _CONVOLVE[dims]
    y: Tensor = convolve(x, kernel, layer.bias, layer.stride, layer.padding, layer.dilation, count)
    return y


@torch.compiler.assume_constant_result  # Inductor's graph has no string to read
def rebuilding(string: str, dims: int) -> tuple[str, int]:
    """The einsum of a layer's factors that gives its kernel, and the number of axes of groups that the kernel has."""
    return _rebuilding(string, dims)


@lru_cache
def _rebuilding(string: str, dims: int) -> tuple[str, int]:
    parts = read(string)
    end = len(parts.input) - dims
    inputs = parts.input[1:end]
    groups = [letter for letter in parts.output[1:] if letter in inputs]
    outputs = tuple(letter for letter in parts.output[1 : len(parts.output) - dims] if letter not in groups)
    rest = tuple(letter for letter in inputs if letter not in groups)
    result = (*groups, *outputs, *rest, *parts.conv)
    names = dict(
        zip(dict.fromkeys((*result, *(x for term in parts.factors for x in term))), ascii_letters, strict=False)
    )
    terms = ["".join(names[letter] for letter in term) for term in (*parts.factors, result)]
    return f"{','.join(terms[:-1])}->{terms[-1]}", len(groups)


def _pairs(parts: Read, layer: ConvEinsum) -> list[tuple[Letters, Tensor]]:
    return list(zip(parts.factors, layer.factors, strict=True))


def _geometry(layer: ConvEinsum, conv: Letters) -> dict[str, tuple[int, Any, int]]:
    """Stride, padding and dilation by letter; the padding is an int, or "same" or "valid" for all."""
    padding = [layer.padding] * len(conv) if isinstance(layer.padding, str) else layer.padding
    return dict(zip(conv, zip(layer.stride, padding, layer.dilation, strict=True), strict=True))


def _step(
    x: Tensor, letters: Letters, factor: Tensor, term: Letters, kept: set[str], geometry: Mapping[str, Any]
) -> tuple[Tensor, Letters]:
    """One factor more. Letters that nothing later reads are summed."""
    conv = tuple(letter for letter in geometry if letter in term)
    if conv:
        return _convolved(x, letters, factor, term, kept, conv, geometry)
    new = tuple(letter for letter in term if letter not in letters)
    result = tuple(letter for letter in (*letters, *new) if letter in kept)
    names = dict(zip(dict.fromkeys((*letters, *term)), ascii_letters, strict=False))
    a, b, c = ("".join(names[letter] for letter in each) for each in (letters, term, result))
    return torch.einsum(f"{a},{b}->{c}", x, factor), result


def _convolved(
    x: Tensor,
    letters: Letters,
    factor: Tensor,
    term: Letters,
    kept: set[str],
    conv: Letters,
    geometry: Mapping[str, Any],
) -> tuple[Tensor, Letters]:
    """One convolution: letters of both are groups if they are kept, else input channels; those of x are the batch."""
    both = [letter for letter in letters if letter in term and letter not in conv]
    groups = [letter for letter in both if letter in kept]
    inputs = [letter for letter in both if letter not in kept]
    outputs = [letter for letter in term if letter not in letters]
    batch = [letter for letter in letters if letter not in term]
    features = _arranged(x, letters, (batch, [*groups, *inputs]), conv)
    kernel = _arranged(factor, term, ([*groups, *outputs], inputs), conv)
    count = prod(x.shape[letters.index(letter)] for letter in groups)
    strides, paddings, dilations = zip(*(geometry[letter] for letter in conv), strict=True)
    padding = paddings[0] if isinstance(paddings[0], str) else paddings
    convolve: Any = _CONVOLVE[len(conv)]
    y = convolve(features, kernel, None, strides, padding, dilations, count)
    sizes = {**dict(zip(term, factor.shape, strict=True)), **dict(zip(letters, x.shape, strict=True))}
    result = (*batch, *groups, *outputs, *conv)
    return y.reshape([*(sizes[letter] for letter in (*batch, *groups, *outputs)), *y.shape[2:]]), result


def _arranged(tensor: Tensor, letters: Letters, axes: Sequence[Sequence[str]], conv: Letters) -> Tensor:
    """A tensor with some letters as one axis each, and the convolution letters after them."""
    sizes = dict(zip(letters, tensor.shape, strict=True))
    order = [letters.index(letter) for letter in (*(x for axis in axes for x in axis), *conv)]
    shape = [*(prod(sizes[letter] for letter in axis) for axis in axes), *(sizes[letter] for letter in conv)]
    return tensor.permute(order).reshape(shape)
