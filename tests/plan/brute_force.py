"""Every evaluation tree of a network, priced from first principles: positions are propagated through the tree as sets.

Supports (positions where a value can be non-zero) go up from the leaves, needs (positions that the rest of the tree
reads) go down from the root; an intermediate on a convolution axis stores what is in both, filled up to a grid. Nothing
here uses `Network`, grids or the search.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import gcd, prod


@dataclass(frozen=True)
class Axis:
    """A convolution axis: the features' operand and size, kernels {operand: (size, dilation)}, stride, pad, out."""

    features: int
    size: int
    kernels: dict
    stride: int
    pad: int
    out: int


@dataclass(frozen=True)
class Problem:
    """Operands as sets of ordinary letters, sizes by letter, output letters, and convolution axes."""

    terms: tuple
    sizes: dict
    output: frozenset
    axes: tuple


def trees(operands):
    """All binary trees over a tuple of operands."""
    if len(operands) == 1:
        yield operands[0]
        return
    first, rest = operands[0], operands[1:]
    for count in range(len(rest)):
        for others in itertools.combinations(rest, count):
            right = tuple(n for n in rest if n not in others)
            for a in trees((first, *others)):
                for b in trees(right):
                    yield (a, b)


def operands_of(tree):
    """The operands under a tree."""
    return (tree,) if isinstance(tree, int) else operands_of(tree[0]) + operands_of(tree[1])


def price(problem, tree, differentiable=frozenset()):
    """Multiply-adds, those of training and with recomputation, largest intermediate, saved activations, and sizes by operand set."""
    everything = frozenset(operands_of(tree))
    lengths = _lengths(problem, tree)
    result = {"flops": 0, "train": 0, "checkpoint": 0, "largest": 0, "saved": 0, "sizes": {}}

    def letters(subset):
        inside = {x for n in subset for x in problem.terms[n]}
        outside = {x for n in everything - subset for x in problem.terms[n]}
        return {x for x in inside if x in problem.output or x in outside}

    def size(subset):
        kept = prod(problem.sizes[x] for x in letters(subset))
        return kept * prod(lengths[a, subset] for a in range(len(problem.axes)))

    def visit(node):
        if isinstance(node, int):
            return frozenset([node])
        left, right = visit(node[0]), visit(node[1])
        both = left | right
        cost = prod(problem.sizes[x] for x in letters(left) | letters(right))
        for a, axis in enumerate(problem.axes):
            on = {axis.features, *axis.kernels}
            if left & on and right & on:
                if axis.features in both:
                    kernel = right if axis.features in left else left
                    cost *= lengths[a, both] * lengths[a, kernel]
                else:
                    cost *= lengths[a, left] * lengths[a, right]
            else:
                cost *= lengths[a, both]
        needs = [bool(side & differentiable) for side in (left, right)]
        result["flops"] += cost
        result["train"] += cost * (1 + sum(needs))
        result["checkpoint"] += cost * ((1 if both == everything else 2) + sum(needs))
        result["largest"] = max(result["largest"], size(both))
        for kept, other in ((left, right), (right, left)):
            if len(kept) > 1 and other & differentiable:
                result["saved"] += size(kept)
        result["sizes"][both] = size(both)
        return both

    visit(tree)
    return result


def _lengths(problem, tree):
    """Length of every intermediate on every axis, by sets of positions carried through this very tree."""
    lengths = {}
    for a, axis in enumerate(problem.axes):
        supports = {}

        def support(node, axis=axis, supports=supports):
            """Positions where the value can be non-zero: of features as they are, of kernels as offsets."""
            if isinstance(node, int):
                if node == axis.features:
                    found = set(range(axis.size))
                elif node in axis.kernels:
                    k, d = axis.kernels[node]
                    found = {d * n for n in range(k)}
                else:
                    found = None
            else:
                x, y = support(node[0]), support(node[1])
                if x is None or y is None:
                    found = x if y is None else y
                elif axis.features in operands_of(node):
                    feature, kernel = (x, y) if axis.features in operands_of(node[0]) else (y, x)
                    found = {i - k for i in feature for k in kernel}
                else:
                    found = {i + j for i in x for j in y}
            supports[frozenset(operands_of(node))] = found
            return found

        support(tree)

        def need(node, wanted, axis=axis, supports=supports, a=a):
            """Store what is wanted and can be non-zero; ask the children for what that takes."""
            subset = frozenset(operands_of(node))
            on = subset & {axis.features, *axis.kernels}
            if not on:
                lengths[a, subset] = 1
            elif axis.features not in on:
                lengths[a, subset] = _kernel_length([axis.kernels[n] for n in on])
            elif on == {axis.features}:
                lengths[a, subset] = axis.size
            elif len(on) == 1 + len(axis.kernels):
                lengths[a, subset] = axis.out
            else:
                stored = wanted & supports[subset] or {min(wanted)}
                outside = [axis.kernels[n] for n in axis.kernels if n not in on]
                step = gcd(*([axis.stride] if axis.out > 1 else []), *(d for k, d in outside if k > 1)) or 1
                lengths[a, subset] = (max(stored) - min(stored)) // step + 1
            if isinstance(node, int):
                return
            for child, other in ((node[0], node[1]), (node[1], node[0])):
                offsets = supports[frozenset(operands_of(other))]
                reads = axis.features in operands_of(child) and offsets is not None
                need(child, {t + k for t in wanted for k in offsets} if reads else wanted)

        need(tree, {axis.stride * o - axis.pad for o in range(axis.out)})
        for n in operands_of(tree):
            lengths.setdefault((a, frozenset([n])), 1)
    return lengths


def _kernel_length(kernels):
    step = gcd(*(d for k, d in kernels if k > 1)) or 1
    return 1 + sum(d * (k - 1) for k, d in kernels) // step
