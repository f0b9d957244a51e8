"""conv_einsum by its definition, in float64: the judge of every test. It shares no code with the package.

For every convolution letter an indicator tensor `D[i, o, k_1, .., k_m]` is filled by loops over the output position and
all kernel positions, and everything is summed by one `torch.einsum` (without a path: left to right), so gradients flow.
"""

import re
from itertools import product

import torch


def conv_einsum(string, *tensors, stride=1, padding="same", dilation=1, padding_mode="zeros", flip=False):
    """Evaluate a conv_einsum string; see the README for what it means."""
    terms, output, conv = read(string, [t.ndim for t in tensors])
    numbers = {}

    def number(name):
        return numbers.setdefault(name, len(numbers))

    sizes = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, size in zip(term, tensor.shape, strict=True):
            if letter not in conv:
                sizes[letter] = max(sizes.get(letter, 1), size) if size != 0 else 0
    features = {letter: features_of(letter, terms, tensors) for letter in conv}
    arguments = []
    for n, (term, tensor) in enumerate(zip(terms, tensors, strict=True)):
        if flip:
            dims = [d for d, letter in enumerate(term) if letter in conv and features[letter] != n]
            tensor = tensor.flip(dims) if dims else tensor
        names = [(letter, n) if letter in conv else letter for letter in term]
        for d, letter in enumerate(term):  # size 1 broadcasts: spread it out
            if letter not in conv and tensor.shape[d] == 1 and sizes[letter] != 1:
                tensor = tensor.expand(*[sizes[letter] if e == d else s for e, s in enumerate(tensor.shape)])
        arguments += [tensor, [number(name) for name in names]]
    for letter in conv:
        holders = [n for n, term in enumerate(terms) if letter in term]
        kernels = [n for n in holders if n != features[letter]]
        indicator = _indicator(
            letter,
            tensors[features[letter]].shape[terms[features[letter]].index(letter)],
            {n: tensors[n].shape[terms[n].index(letter)] for n in kernels},
            _by_letter(stride, letter, 1),
            _by_letter(padding, letter, "same"),
            {n: _dilation(dilation, n, letter) for n in kernels},
            padding_mode,
        ).to(tensors[0].dtype)
        names = [(letter, features[letter]), (letter, "out"), *((letter, n) for n in kernels)]
        arguments += [indicator, [number(name) for name in names]]
    out = [number((letter, "out") if letter in conv else letter) for letter in output]
    with torch.backends.opt_einsum.flags(enabled=False):
        return torch.einsum(*arguments, out)


def features_of(letter, terms, tensors):
    """The operand with the largest size on a letter, the first of equals."""
    sizes = [(tensors[n].shape[term.index(letter)], -n) for n, term in enumerate(terms) if letter in term]
    return -max(sizes)[1]


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


def _by_letter(value, letter, default):
    if not isinstance(value, dict):
        return value
    return next((v for key, v in value.items() if isinstance(key, str) and key.strip("()") == letter), default)


def _dilation(value, operand, letter):
    if not isinstance(value, dict):
        return value
    pairs = {(key[0], key[1].strip("()")): v for key, v in value.items() if isinstance(key, tuple)}
    return pairs.get((operand, letter), _by_letter(value, letter, 1))


def _indicator(letter, size, kernels, stride, padding, dilation, padding_mode):
    del letter
    reach = sum(dilation[n] * (k - 1) for n, k in kernels.items())
    named = {"same": (reach // 2, reach - reach // 2), "valid": (0, 0), "full": (reach, reach)}
    left, right = named[padding] if isinstance(padding, str) else padding if isinstance(padding, tuple) else (padding,) * 2
    out = (size + left + right - reach - 1) // stride + 1
    values = torch.zeros(size, out, *kernels.values(), dtype=torch.float64)
    for o, *ks in product(range(out), *(range(k) for k in kernels.values())):
        i = stride * o - left + sum(dilation[n] * k for n, k in zip(kernels, ks, strict=True))
        if padding_mode == "circular":
            i %= size
        if 0 <= i < size:
            values[(i, o, *ks)] += 1
    return values
