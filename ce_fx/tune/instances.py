"""What a calibration runs: random ops of every family, one from each step of the log of the work.

An instance is a tensor op, the shapes of its operands and the `Op` that the time model sees of it. Shapes are those
that factorised layers have: few or many channels, kernels of one and of two sizes, kernels merged with one another.
They are the same for every device and kind of number; a faster device draws from larger work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ce_fx.plan.kinds import conv_family
from ce_fx.plan.ops import FAMILIES, Op


@dataclass(frozen=True)
class Instance:
    """One microbenchmark.

    Attributes:
        op: what the model sees.
        compute: the tensor op.
        shapes: of its operands.
    """

    op: Op
    compute: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


CHANNELS = (3, 4, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
FEW = CHANNELS[:11]  # per group or batch item: with hundreds of both, nothing is small enough to be drawn
SIDES = (5, 7, 10, 14, 20, 28, 40, 56, 80, 112)
BATCHES = (1, 2, 4, 8, 16)
KERNELS = ((3, 3), (3, 1), (1, 3), (5, 5), (2, 2), (7, 1))
ROWS = (1, 4, 9, 16, 49, 64, 196, 256, 784, 1024, 3136, 8192)

# Multiply-adds (elements where there are none) of the smallest and the largest instance: a few us to some 20 ms on a
# core. `FASTER` is what the largest is multiplied by on other kinds of device, as far as the shapes above reach.
WORK: dict[str, tuple[float, float]] = {
    "mm": (1e3, 5e8),
    "bmm": (1e4, 2e8),
    "conv1x1": (1e4, 4e8),
    "conv": (1e4, 4e8),
    "conv_few": (1e4, 4e7),
    "depthwise": (3e3, 1e7),
    "grouped": (1e4, 2e8),
    "grouped_thin": (3e3, 2e7),
    "mul": (1e2, 5e6),
    "sum": (1e3, 1e7),
    "copy": (1e3, 5e6),
    "add": (1e2, 5e6),
}
FASTER = 4


def instances(family: str, count: int, seed: int = 0, device: str = "cpu") -> list[Instance]:
    """Random instances of a family, one from each of `count` equal steps of the log of the work.

    Args:
        family: one of `ce_fx.plan.ops.FAMILIES`.
        count: how many.
        seed: of the draw; equal seeds give equal instances.
        device: kind of device, "cpu", "cuda", ...
    """
    rng = random.Random(f"{seed} {family}")
    low, high = WORK[family]
    high *= 1 if device == "cpu" else FASTER
    return [
        _between(rng, family, low * (high / low) ** (n / count), low * (high / low) ** ((n + 1) / count))
        for n in range(count)
    ]


def all_instances(count: int, seed: int = 0, device: str = "cpu") -> list[Instance]:
    """`count` instances of every family, in the order of the families."""
    return [one for family in FAMILIES for one in instances(family, count, seed, device)]


def _between(rng: random.Random, family: str, least: float, most: float) -> Instance:
    """The first draw of the family (a grouped convolution with a channel a group is not) that takes the work.

    The shapes may have none of so much work, above all on a fast device: then the draw that comes closest.
    """
    drawn = (DRAW[family](rng) for _ in range(_DRAWS))
    found: list[tuple[float, Instance]] = []
    for one in drawn:
        work = one.op.macs or one.op.elements
        if one.op.family == family:
            if least <= work < most:
                return one
            found.append((abs(math.log(work / least)), one))
    return min(found, key=lambda each: each[0])[1]


_DRAWS = 20000


def _matmul(rng: random.Random) -> Instance:
    """`[m, k] @ [k, n]`, the second operand as it is or transposed; the short side of the result first or last."""
    m, k, n = rng.choice(ROWS), rng.choice((2, *CHANNELS)), rng.choice((1, 2, *CHANNELS))
    if rng.random() < 0.3:
        m, n = n, m
    op = Op("mm", m * k * n, k, n, m, m * k + k * n + m * n)
    if rng.random() < 0.5:
        return Instance(op, torch.mm, ((m, k), (k, n)))
    return Instance(op, lambda x, w: torch.mm(x, w.t()), ((m, k), (n, k)))


def _batched(rng: random.Random) -> Instance:
    """One matrix a batch item, applied from the right; or one a group, or one for all, from the left of the pixels."""
    g, m = rng.choice((1, 2, 4, 8, 16, 32, 64)), rng.choice(ROWS)
    k, n = rng.choice((2, *FEW)), rng.choice((1, 2, *FEW))
    b = rng.choice(BATCHES)
    macs, elements = g * b * m * k * n, g * (b * m * k + k * n + b * m * n)
    if b == 1:
        return Instance(Op("bmm", macs, k, n, m, elements), torch.bmm, ((g, m, k), (g, k, n)))
    op = Op("bmm", macs, k, m, n, elements)
    if g == 1:  # as `ce_fx.lower.multiply.at_each` does it: a plain matrix would be folded
        return Instance(op, lambda x, w: torch.bmm(w.expand(b, -1, -1), x), ((b, k, m), (n, k)))
    return Instance(op, lambda x, w: torch.matmul(w, x), ((b, g, k, m), (g, n, k)))


def _convolution(rng: random.Random, channels: int, columns: int, groups: int, kernel: tuple[int, int]) -> Instance:
    b, side = rng.choice(BATCHES), rng.choice(SIDES)
    stride = 2 if rng.random() < 0.2 and side > 10 and kernel != (1, 1) else 1
    pad = (kernel[0] // 2, kernel[1] // 2)
    out = [(side + 2 * p - k) // stride + 1 for p, k in zip(pad, kernel, strict=True)]
    window, rows = math.prod(kernel), math.prod(out)
    x, w = (b, groups * channels, side, side), (groups * columns, channels, *kernel)
    results = b * groups * columns * rows
    family = conv_family(channels, columns, groups, window)
    elements = math.prod(x) + math.prod(w) + results
    op = Op(family, results * channels * window, channels * window, columns, rows, elements)
    return Instance(op, lambda x, w: torch.conv2d(x, w, stride=stride, padding=pad, groups=groups), (x, w))


def _merge(rng: random.Random, channels: int, columns: int, groups: int) -> Instance:
    """Two kernels become one, as in `ce_fx.lower.convolve.merge`."""
    b = rng.choice(CHANNELS)
    x, w = (b, groups * channels, 3, 1), (groups * channels, columns, 1, 3)
    results = b * groups * columns * 9
    elements = math.prod(x) + math.prod(w) + results
    op = Op(conv_family(channels, columns, groups, 3), results * channels, channels * 3, columns, 9, elements)
    return Instance(op, lambda x, w: torch.conv_transpose2d(x, w, groups=groups), (x, w))


def _conv(rng: random.Random) -> Instance:
    return _convolution(rng, rng.choice(CHANNELS), rng.choice(CHANNELS), 1, rng.choice(KERNELS))


def _conv_pixels(rng: random.Random) -> Instance:
    return _convolution(rng, rng.choice(CHANNELS), rng.choice(CHANNELS), 1, (1, 1))


def _conv_few(rng: random.Random) -> Instance:
    pair = [rng.choice((1, 2)), rng.choice((1, 2, *CHANNELS))]
    rng.shuffle(pair)
    return _convolution(rng, pair[0], pair[1], 1, rng.choice((*KERNELS, (1, 1))))


def _depthwise(rng: random.Random) -> Instance:
    groups = rng.choice(CHANNELS)
    return _merge(rng, 1, 1, groups) if rng.random() < 0.15 else _convolution(rng, 1, 1, groups, rng.choice(KERNELS))


def _grouped(rng: random.Random) -> Instance:
    groups, channels, columns = rng.choice((2, 4, 8, 16, 32)), rng.choice(CHANNELS[:9]), rng.choice((1, *CHANNELS[:9]))
    if rng.random() < 0.15:
        return _merge(rng, channels, columns, groups)
    return _convolution(rng, channels, columns, groups, rng.choice(KERNELS))


def _grouped_thin(rng: random.Random) -> Instance:
    groups, channels, columns = rng.choice(CHANNELS), rng.choice((1, 2)), rng.choice((1, 2, 3, 4, 8, 16))
    columns = max(columns, 3 - channels)  # one by one is depthwise
    if rng.random() < 0.15:
        return _merge(rng, channels, columns, groups)
    return _convolution(rng, channels, columns, groups, rng.choice(KERNELS))


def _multiply(rng: random.Random) -> Instance:
    b, r, h, w = rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice((1, *SIDES))
    x, y = rng.choice((((b, r, h, 1), (r, 1, w)), ((b, r, h, w), (r, 1, 1)), ((b, r, h, w), (b, r, h, w))))
    results = b * r * h * w
    return Instance(Op("mul", results, 1, 1, results, math.prod(x) + math.prod(y) + results), torch.mul, (x, y))


def _addition(rng: random.Random) -> Instance:
    shape = (rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice((1, *SIDES)))
    results = math.prod(shape)
    return Instance(Op("add", 0, 1, 1, results, 3 * results), torch.add, (shape, shape))


def _summation(rng: random.Random) -> Instance:
    shape = (rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice(SIDES))
    dim = rng.randrange(4)
    results = math.prod(shape) // shape[dim]
    run = math.prod(shape[dim + 1 :]) if dim < 3 else shape[3]
    return Instance(Op("sum", 0, 1, run, results, math.prod(shape) + results), lambda x: x.sum(dim), (shape,))


def _transposition(rng: random.Random) -> Instance:
    shape = (rng.choice(BATCHES), rng.choice(CHANNELS), rng.choice((1, *SIDES)), rng.choice(SIDES))
    results = math.prod(shape)
    order = rng.choice(((0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0), (0, 1, 3, 2)))
    if [n for n in order if shape[n] > 1] == [n for n in range(4) if shape[n] > 1]:
        order = (3, 2, 1, 0)  # what keeps its order in memory is a view, which nobody copies
    kept = next(n for n in range(5) if n == 4 or order[3 - n] != 3 - n)  # innermost dims that stay where they are
    return Instance(
        Op("copy", 0, 1, math.prod(shape[4 - kept :]), results, 2 * results),
        lambda x: x.permute(order).clone(memory_format=torch.contiguous_format),
        (shape,),
    )


DRAW: dict[str, Callable[[random.Random], Instance]] = {
    "mm": _matmul,
    "bmm": _batched,
    "conv1x1": _conv_pixels,
    "conv": _conv,
    "conv_few": _conv_few,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "grouped_thin": _grouped_thin,
    "mul": _multiply,
    "sum": _summation,
    "copy": _transposition,
    "add": _addition,
}
