"""Layers by definition: the dense kernel by one plain einsum, the layer by torch's own convolution.

Shares no code with the package.
"""

import torch
from torch.nn import functional as F

from tests.oracle import read

CONVOLUTIONS = (F.linear, F.conv1d, F.conv2d, F.conv3d)


def dense_kernel(string, factors, groups=1):
    """(out channels, in channels / groups, *kernel): the factors of a layer's string, multiplied out.

    Channel letters that input and output share, other than the group letter `g`, are handled by an identity matrix.
    """
    terms, output, conv = read(string, [0] * (string.count(",") + 1))
    source, factor_terms = terms[0], terms[1:]
    numbers, arguments = {}, []
    for term, factor in zip(factor_terms, factors, strict=True):
        arguments += [factor, [numbers.setdefault(letter, len(numbers)) for letter in term]]
    sizes = {x: n for term, f in zip(factor_terms, factors, strict=True) for x, n in zip(term, f.shape, strict=True)}
    into = [x for x in source[1:] if x not in conv and not (x == "g" and groups > 1)]
    out = [x for x in output[1:] if x not in conv]
    letters = []
    for letter in out:
        if letter in into:
            copy = numbers.setdefault(f"copy of {letter}", len(numbers))
            arguments += [torch.eye(sizes[letter], dtype=factors[0].dtype), [numbers[letter], copy]]
            letters.append(copy)
        else:
            letters.append(numbers[letter])
    with torch.backends.opt_einsum.flags(enabled=False):
        dense = torch.einsum(*arguments, [*letters, *(numbers[x] for x in (*into, *conv))])
    count = len(out)
    return dense.flatten(0, count - 1).flatten(1, len(into)) if conv else dense.flatten(0, count - 1).flatten(1)


def dense_layer(layer, x, kernel, bias):
    """Torch's own convolution of the layer's geometry."""
    dims = len(layer.kernel_size)
    if not dims:
        return F.linear(x, kernel, bias)
    padding, mode = layer.padding, layer.padding_mode
    if mode != "zeros":
        ends = [p for size in reversed(padding) for p in (size, size)] if not isinstance(padding, str) else []
        for size, dilation in reversed(list(zip(layer.kernel_size, layer.dilation, strict=True))):
            if padding == "same":
                whole = dilation * (size - 1)
                ends += [whole // 2, whole - whole // 2]
        x, padding = F.pad(x, ends, mode=mode) if ends else x, 0
    return CONVOLUTIONS[dims](x, kernel, bias, layer.stride, padding, layer.dilation, layer.groups)
