"""conv_einsum by its definition, in float64: the judge of every test. It shares no code with the package.

For every convolution letter an indicator tensor `D[i, o, k_1, .., k_m]` is filled by loops over the output position and
all kernel positions, and everything is summed by one `torch.einsum` (without a path: left to right), so gradients flow.
"""

import re
from dataclasses import dataclass
from itertools import product
from math import prod

import torch


@dataclass(frozen=True)
class Reading:
    """A string and shapes, read.

    Attributes:
        terms: letters of each operand.
        output: letters of the output.
        conv: letters after the pipe.
        sizes: of every letter that is no conv letter, after size 1 is broadcast.
        features: by conv letter, the number of the operand that is slid over.
        windows: by conv letter, the geometry.
    """

    terms: list
    output: list
    conv: list
    sizes: dict
    features: dict
    windows: dict


@dataclass(frozen=True)
class Geometry:
    """One conv letter: `i = stride*o - left + sum_n dilation[n]*k[n]`, with kernels by operand number."""

    size: int
    kernels: dict
    stride: int
    left: int
    dilation: dict
    out: int


def conv_einsum(string, *tensors, stride=1, padding="same", dilation=1, padding_mode="zeros", flip=False):
    """Evaluate a conv_einsum string in float64 (complex128), whatever the dtype of the operands; differentiable.

    Per conv letter `y[o] = sum_k x[stride*o - left + sum_j dilation_j*k_j] * prod_j w_j[k_j]`, zero outside x or modulo
    its size with `padding_mode="circular"`; with `flip` every kernel is reversed first.
    """
    tensors = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors]
    kind = torch.complex128 if any(t.is_complex() for t in tensors) else torch.float64
    seen = _read(string, [tuple(t.shape) for t in tensors], stride, padding, dilation)
    numbers = {}
    arguments = []
    for n, (term, tensor) in enumerate(zip(seen.terms, tensors, strict=True)):
        kernel_dims = [d for d, letter in enumerate(term) if letter in seen.conv and seen.features[letter] != n]
        tensor = tensor.flip(kernel_dims) if flip and kernel_dims else tensor
        shape = [seen.sizes.get(letter, tensor.shape[d]) for d, letter in enumerate(term)]
        names = [(letter, n) if letter in seen.conv else letter for letter in term]
        arguments += [tensor.expand(shape).to(kind), _numbered(names, numbers)]  # size 1 broadcasts
    for letter, window in seen.windows.items():
        names = [(letter, seen.features[letter]), (letter, "out"), *((letter, n) for n in window.kernels)]
        arguments += [_indicator(window, padding_mode == "circular").to(kind), _numbered(names, numbers)]
    out = [(letter, "out") if letter in seen.conv else letter for letter in seen.output]
    with torch.backends.opt_einsum.flags(enabled=False):
        return torch.einsum(*arguments, _numbered(out, numbers))


def output_shape(string, *shapes, stride=1, padding="same", dilation=1, padding_mode="zeros", flip=False):
    """The shape of the result for operands of these shapes; the last two options don't change it."""
    del padding_mode, flip
    seen = _read(string, [tuple(shape) for shape in shapes], stride, padding, dilation)
    return tuple(seen.windows[x].out if x in seen.conv else seen.sizes[x] for x in seen.output)


def _read(string, shapes, stride, padding, dilation):
    terms, output, conv = read(string, [len(shape) for shape in shapes])
    sizes = {}
    held = {letter: {} for letter in conv}
    for n, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        for letter, size in zip(term, shape, strict=True):
            if letter in conv:
                held[letter][n] = size
            elif sizes.get(letter, 1) == 1:
                sizes[letter] = size
    features = {letter: max(holders, key=lambda n: (holders[n], -n)) for letter, holders in held.items()}
    windows = {
        letter: _geometry(
            holders.pop(features[letter]),
            holders,
            _by_letter(stride, letter, 1),
            _by_letter(padding, letter, "same"),
            {n: _dilation(dilation, n, letter) for n in holders},
        )
        for letter, holders in held.items()
    }
    return Reading(terms, output, conv, sizes, features, windows)


def read(string, ndims):
    """Letters of each operand, of the output, and after the pipe."""
    body, _, pipe = string.replace(" ", "").partition("|")
    inputs, arrow, out = body.partition("->")

    def tokens(text):
        return [token.strip("()") for token in re.findall(r"\.\.\.|\(\w+\)|\w", text)]

    terms = [tokens(text) for text in inputs.split(",")]
    dots = [ndim - len(term) + 1 if "..." in term else 0 for term, ndim in zip(terms, ndims, strict=True)]

    def spread(term, count):
        names = [f"...{k}" for k in range(count, 0, -1)]
        return [x for letter in term for x in (names if letter == "..." else [letter])]

    widest = max(dots)
    terms = [spread(term, count) for term, count in zip(terms, dots, strict=True)]
    if arrow:
        output = spread(tokens(out), widest)
    else:
        flat = [x for term in terms for x in term if not x.startswith("...")]
        output = spread(["..."], widest) + sorted(x for x in set(flat) if flat.count(x) == 1)
    return terms, output, tokens(pipe.replace(",", ""))


def _numbered(names, numbers):
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _by_letter(value, letter, default):
    if not isinstance(value, dict):
        return value
    return next((v for key, v in value.items() if isinstance(key, str) and key.strip("()") == letter), default)


def _dilation(value, operand, letter):
    if not isinstance(value, dict):
        return value
    pairs = {(key[0], key[1].strip("()")): v for key, v in value.items() if isinstance(key, tuple)}
    return pairs.get((operand, letter), _by_letter(value, letter, 1))


def _geometry(size, kernels, stride, padding, dilation):
    reach = sum(dilation[n] * (k - 1) for n, k in kernels.items())  # the composite kernel, less one
    named = {"same": (reach // 2, reach - reach // 2), "valid": (0, 0), "full": (reach, reach)}
    left, right = (
        named[padding] if isinstance(padding, str) else padding if isinstance(padding, tuple) else (padding,) * 2
    )
    out = (size + left + right - reach - 1) // stride + 1
    assert out >= 1 or prod([size, *kernels.values()]) == 0, f"no output position: {size} {kernels} {padding}"
    return Geometry(size, kernels, stride, left, dilation, out)


def _indicator(window, circular):
    """`D[i, o, k_1, .., k_m]`: 1 where output o reads input i through these kernel positions."""
    values = torch.zeros(window.size, window.out, *window.kernels.values(), dtype=torch.float64)
    for o, *ks in product(range(window.out), *(range(k) for k in window.kernels.values())):
        i = (
            window.stride * o
            - window.left
            + sum(window.dilation[n] * k for n, k in zip(window.kernels, ks, strict=True))
        )
        i = i % window.size if circular else i
        if 0 <= i < window.size:
            values[(i, o, *ks)] = 1
    return values
