"""Evaluate an Expression from its definition, in float64, by index enumeration; shares no code with the package."""

from itertools import product
from math import prod

import torch


def evaluate(expression, leaves):
    """Sum over all indices of the product of leaves and window indicators, term by term."""
    total = torch.zeros(expression.shape, dtype=torch.float64)
    for term in expression.terms:
        total = total + _term(term, expression.axes, leaves)
    return total


def _term(term, axes, leaves):
    numbers = {}

    def number(index):
        return numbers.setdefault(index, len(numbers))

    arguments = []
    for factor in term.factors:
        indices = [index for axis in factor.axes for index in axis]
        tensor = leaves[factor.leaf].reshape([index.size for index in indices])
        arguments += [tensor, [number(index) for index in indices]]
    for window in term.windows:
        indices = (window.features, window.out, *(tap.index for tap in window.taps))
        arguments += [_indicator(window), [number(index) for index in indices]]
    output = [index for axis in axes for index in axis]
    held = [index for index in output if index in numbers]
    whole = (
        torch.einsum(*arguments, [number(index) for index in held])
        if arguments
        else torch.ones((), dtype=torch.float64)
    )
    result = whole * term.coefficient
    shape = [index.size if index in held else 1 for index in output]
    full = result.reshape(shape).expand([index.size for index in output])
    return full.reshape([prod(index.size for index in axis) for axis in axes])


def _indicator(window):
    shape = (window.features.size, window.out.size, *(tap.index.size for tap in window.taps))
    values = torch.zeros(shape, dtype=torch.float64)
    small, large = (0, 1) if window.transposed else (1, 0)
    for point in product(*map(range, shape)):
        reach = sum(tap.dilation * k for tap, k in zip(window.taps, point[2:], strict=True))
        position = window.stride * point[small] + reach - window.pad
        if window.circular:
            position %= window.features.size
        if point[large] == position:
            values[point] = 1
    return values
