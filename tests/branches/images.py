"""Lines of convolutions."""

import torch

from tests.branches.sums import add_up, combined
from tests.branches.writer import Writer, weight_of


def is_image(value: torch.Tensor) -> bool:
    return value.ndim in (3, 4) and min(value.shape[2:]) >= 2


def conv(w: Writer, x: str, outs: int, kernel, stride, padding, dilation, groups, bias: bool) -> str:
    n = len(kernel)
    shape = (outs, w.shape(x)[1] // groups, *kernel)
    weight = weight_of(w, *shape)
    vector = w.weight(outs) if bias else None
    return w.let(f"F.conv{n}d({x}, {weight}, {vector}, {stride}, {padding}, {dilation}, {groups})")


def groups_of(w: Writer, ins: int, outs: int) -> int:
    return w.rng.choice([g for g in (1, 1, 1, 1, 2, 3, ins) if ins % g == 0 and outs % g == 0])


def any_conv(w: Writer) -> None:
    x = w.pick(is_image)
    n = w.of(x).ndim - 2
    ins, outs = w.shape(x)[1], w.rng.randint(1, 5)
    each = lambda *values: [w.rng.choice(values) for _ in range(n)]
    conv(w, x, outs, each(1, 2, 3), each(1, 1, 2), each(0, 1, 2), each(1, 1, 2), groups_of(w, ins, outs), w.chance(0.3))


def branch(w: Writer, x: str, outs: int, stride: list[int], delta: list[int], bias: bool) -> str:
    """A convolution, or two in a row, whose result has a size that is given by stride and `reach - 2 * padding`."""
    kernel, dilation, padding = [], [], []
    for d in delta:
        fits = [
            (k, e) for k in (1, 2, 3, 3, 5) for e in (1, 1, 2, 3) if e * (k - 1) >= d and (e * (k - 1) - d) % 2 == 0
        ]
        k, e = w.rng.choice([(k, e) for k, e in fits if k > 1 or e == 1])
        kernel.append(k)
        dilation.append(e)
        padding.append((e * (k - 1) - d) // 2)
    ins = w.shape(x)[1]
    kind = w.rng.randrange(6)
    ones = [1 for _ in kernel]
    zeros = [0 for _ in kernel]
    if kind == 0:  # a bottleneck before
        rank = w.rng.randint(1, 3)
        x = conv(w, x, rank, ones, 1, 0, 1, 1, w.chance(0.1))
        ins = rank
    if kind == 1:  # channels after
        mid = w.rng.randint(1, 3)
        x = conv(w, x, mid, kernel, stride, padding, dilation, groups_of(w, ins, mid), w.chance(0.2))
        return conv(w, x, outs, ones, 1, 0, 1, groups_of(w, mid, outs), bias)
    if kind == 2 and len(kernel) == 2:  # one axis after the other
        a, b = [kernel[0], 1], [1, kernel[1]]
        mid = w.rng.choice([ins, w.rng.randint(1, 3)])
        x = conv(w, x, mid, a, [stride[0], 1], [padding[0], 0], [dilation[0], 1], groups_of(w, ins, mid), False)
        last = [1, stride[1]], [0, padding[1]], [1, dilation[1]]
        return conv(w, x, outs, b, *last, groups_of(w, mid, outs), bias)
    if kind == 3:
        x = w.let(f"{x} * {w.scalar()}")
    if kind == 4 and stride == ones and delta == zeros:  # a larger stack, the border rule in between
        x = conv(w, x, ins, kernel, stride, padding, dilation, groups_of(w, ins, ins), False)
    return conv(w, x, outs, kernel, stride, padding, dilation, groups_of(w, ins, outs), bias)


def branches(w: Writer) -> None:
    """Several convolutions of one input, or of two, added up."""
    x = w.pick(is_image)
    n = w.of(x).ndim - 2
    y = w.like(x) if w.chance(0.3) else x
    ins = w.shape(x)[1]
    outs = w.rng.choice([ins, ins, w.rng.randint(1, 5)])
    stride = [w.rng.choice([1, 1, 1, 2]) for _ in range(n)]
    delta = [w.rng.choice([0, 0, 0, 0, 0, 2, 1, -2]) for _ in range(n)]
    biased = w.rng.choice([0.0, 0.3, 1.0])
    parts = [
        branch(w, w.rng.choice([x, x, y]), outs, stride, delta, w.chance(biased)) for _ in range(w.rng.randint(2, 3))
    ]
    if outs == ins and stride == [1] * n and delta == [0] * n and w.chance(0.5):
        parts.append(x)
    add_up(w, parts)


def rep_vgg(w: Writer) -> None:
    """3x3, 1x1 and the identity."""
    x = w.pick(lambda value: is_image(value) and value.shape[1] <= 6)
    n, c = w.of(x).ndim - 2, w.shape(x)[1]
    groups, bias = groups_of(w, c, c), w.chance(0.5)
    parts = [
        conv(w, x, c, [3] * n, 1, 1, 1, groups, bias),
        conv(w, x, c, [1] * n, 1, 0, 1, groups, bias),
    ]
    add_up(w, [*parts, x] if w.chance(0.8) else parts)


def adapter(w: Writer) -> None:
    """conv(x, W) + s * conv(conv(x, A), B)."""
    x = w.pick(is_image)
    n = w.of(x).ndim - 2
    outs, rank, k = w.rng.randint(2, 5), w.rng.randint(1, 2), w.rng.choice([1, 3])
    base = conv(w, x, outs, [k] * n, 1, k // 2, 1, 1, w.chance(0.4))
    down = conv(w, x, rank, [k] * n, 1, k // 2, 1, 1, False)
    up = conv(w, down, outs, [1] * n, 1, 0, 1, 1, False)
    w.let(f"{base} + {w.scalar()} * {up}" if w.chance(0.6) else f"torch.add({base}, {up}, alpha={w.number()})")


def one_kernel(w: Writer) -> None:
    """Two inputs under one kernel."""
    x = w.pick(is_image)
    y = w.like(x)
    n, c = w.of(x).ndim - 2, w.shape(x)[1]
    k, outs = w.rng.choice([1, 2, 3]), w.rng.randint(1, 4)
    weight = weight_of(w, outs, c, *[k] * n)
    stride, padding = w.rng.choice([1, 1, 2]), w.rng.choice([0, 1])
    conv = lambda value: w.let(f"F.conv{n}d({value}, {weight}, None, {stride}, {padding})")
    if w.chance(0.5):
        conv(combined(w, x, y))
    else:
        add_up(w, [conv(x), conv(y)])


def transposed(w: Writer) -> None:
    x = w.pick(is_image)
    n, c = w.of(x).ndim - 2, w.shape(x)[1]
    outs, k, stride = w.rng.randint(1, 3), w.rng.choice([2, 3]), w.rng.choice([1, 2])
    one = lambda: w.let(f"F.conv_transpose{n}d({x}, {weight_of(w, c, outs, *[k] * n)}, None, {stride}, {padding})")
    padding = w.rng.choice([0, 0, 1])
    first = one()
    if w.chance(0.6):
        add_up(w, [first, one()])
