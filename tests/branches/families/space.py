"""Lines that work on every channel by itself: resizes, pools, means, padding, crops."""

import torch

from tests.branches.images import conv
from tests.branches.sums import combined
from tests.branches.writer import Skip, Writer

_MODES = {
    1: ["nearest", "nearest-exact", "linear", "linear", "area"],
    2: ["nearest", "nearest-exact", "bilinear", "bilinear", "bicubic", "bicubic", "area"],
    3: ["nearest", "nearest-exact", "trilinear", "trilinear", "area"],
}


def is_space(value: torch.Tensor) -> bool:
    """A batch of signals, images or volumes."""
    return value.ndim in (3, 4, 5) and value.shape[1] <= 12


def mixing(w: Writer, x: str, outs: int | None = None) -> str:
    """A 1x1 convolution, which is what ops on channels by themselves may change places with."""
    n = w.of(x).ndim - 2
    return conv(w, x, outs or w.rng.randint(1, 4), [1] * n, 1, 0, 1, 1, w.chance(0.3))


def before(w: Writer) -> str:
    """A value to work on, mostly one that was just convolved."""
    x = w.pick(is_space)
    with w.around():
        return mixing(w, x) if w.chance(0.4) else x


def after(w: Writer, x: str) -> None:
    """Perhaps a convolution of the result, or two that read it."""
    if w.of(x).ndim not in (3, 4, 5) or w.chance(0.3):
        return
    with w.around():
        n = w.of(x).ndim - 2
        if min(w.shape(x)[2:]) >= 2 and w.chance(0.5):
            groups = w.rng.choice([1, w.shape(x)[1]])
            conv(w, x, groups * w.rng.randint(1, 2), [2] * n, 1, w.rng.choice([0, 0, 1]), 1, groups, w.chance(0.3))
        elif w.chance(0.3):
            combined(w, mixing(w, x, 3), mixing(w, x, 3))
        else:
            mixing(w, x)


def resize(w: Writer) -> None:
    x = before(w)
    n = w.of(x).ndim - 2
    sizes, mode = w.shape(x)[2:], w.rng.choice(_MODES[n])
    kind = w.rng.randrange(4)
    if kind == 0:
        new = [w.rng.choice([size, 2 * size, w.rng.randint(1, 9)]) for size in sizes]
        how = f"size={new[0] if len(set(new)) == 1 else new}"
    elif kind == 1:
        how = f"scale_factor={w.rng.choice([2, 2.0, 3, 0.5, 1.5])}"
    else:
        how = f"scale_factor={[w.rng.choice([2.0, 1.0, 1.5, 0.5, 3.0, 1.3, 0.7]) for _ in sizes]}"
        how += w.rng.choice(["", "", ", recompute_scale_factor=True", ", recompute_scale_factor=False"])
    if mode.endswith(("linear", "cubic")):
        how += w.rng.choice(["", ", align_corners=False", ", align_corners=True", ", align_corners=True"])
        if n == 2 and w.chance(0.05):
            how = how.partition(", align")[0] + ", antialias=True"
    after(w, w.let(f"F.interpolate({x}, {how}, mode='{mode}')"))


def pool(w: Writer) -> None:
    x = before(w)
    sizes = w.shape(x)[2:]
    n = len(sizes)
    kernel = [w.rng.randint(1, min(3, size)) for size in sizes]
    stride = w.rng.choice([None, kernel, [w.rng.randint(1, 3) for _ in sizes], 1])
    padding = [w.rng.randint(0, k // 2) for k in kernel] if w.chance(0.5) else 0
    ceil, count = w.chance(0.3), w.chance(0.6)
    divisor = f", {w.rng.choice([1, 2, 3, 5])}" if n > 1 and w.chance(0.2) else ""
    after(w, w.let(f"F.avg_pool{n}d({x}, {kernel}, {stride}, {padding}, {ceil}, {count}{divisor})"))


def adaptive(w: Writer) -> None:
    x = before(w)
    sizes = w.shape(x)[2:]
    n = len(sizes)
    outs = [w.rng.choice([1, w.rng.randint(1, size), size, size + 1, max(1, size // 2)]) for size in sizes]
    given = outs[0] if n == 1 else [w.rng.choice([None, out, out, out]) for out in outs]
    after(w, w.let(f"F.adaptive_avg_pool{n}d({x}, {given if w.chance(0.8) else 1})"))


def mean(w: Writer) -> None:
    """Global pooling in some spelling, and a classifier."""
    x = before(w)
    n, keep = w.of(x).ndim - 2, w.chance(0.4)
    dims = tuple(range(2, n + 2)) if w.chance(0.6) else w.rng.choice([-1, (2, -1), 2, (0, 2), 1, (0,)])
    if dims == (2, -1) and n == 1:
        dims = 2
    forms = ["{x}.mean({d}, keepdim={k})", "torch.mean({x}, {d}, {k})", "{x}.sum({d}, keepdim={k})"]
    if not keep:
        forms += ["{x}.flatten(2).mean(-1)", "{x}.flatten(2).sum(2) / 3"]
    small = w.let(w.rng.choice(forms).format(x=x, d=dims, k=keep))
    with w.around():
        if not keep and w.of(small).ndim >= 2 and w.chance(0.7):
            w.let(f"F.linear({small}, {w.weight(w.rng.randint(1, 4), w.shape(small)[-1])})")
        elif keep:
            combined(w, x, small) if w.chance(0.5) else after(w, small)


def gate(w: Writer) -> None:
    """A value times what is made of its mean, without a nonlinearity."""
    x = w.pick(is_space)
    c, n = w.shape(x)[1], w.of(x).ndim - 2
    small = w.let(f"{x}.mean({tuple(range(2, n + 2))}, keepdim=True)")
    with w.around():
        weights = conv(w, small, c, [1] * n, 1, 0, 1, 1, w.chance(0.5))
    w.let(f"{x} * {weights}")


def pad(w: Writer) -> None:
    x = before(w)
    shape = w.shape(x)
    dims = w.rng.randint(1, len(shape) - 1)
    pads = []
    for size in reversed(shape[-dims:]):
        left = w.rng.choice([0, 1, 2, -1 if size > 2 else 0])
        pads += [left, w.rng.choice([0, 1, 1, -1 if size + min(left, 0) > 1 else 0])]
    mode = w.rng.choice(["", "", ", 'constant', 0.0", ", value=0", ", 'constant', 1.5"])
    if w.chance(0.2):
        n = len(shape) - 2
        pads = [w.rng.randint(0, 1) for _ in range(2 * n)]
        mode = f", '{w.rng.choice(['circular', 'reflect', 'replicate'])}'"
        if min(shape[2:]) < 2:
            raise Skip
    after(w, w.let(f"F.pad({x}, {tuple(pads)}{mode})"))


def crop(w: Writer) -> None:
    x = before(w)
    places = []
    for size in w.shape(x)[1:]:
        forms = [":", ":", "::2", "1::2", ":-1", "1:", "-2:", f"{size // 2}:", f":{size // 2 + 1}", f"{size - 1}"]
        places.append(w.rng.choice(forms))
    lead = w.rng.choice([":", ":", "..."])
    if lead == "...":
        places = places[-w.rng.randint(1, len(places)) :]
    small = w.let(f"{x}[{', '.join([lead, *places])}]")
    if is_space(w.of(small)):
        after(w, small)


def volume(w: Writer) -> None:
    """Images one after the other as a volume, a convolution of it, and images again."""
    x = w.pick(lambda value: value.ndim == 4 and value.numel() < 800)
    y = w.like(x)
    made = w.let(w.rng.choice([f"torch.stack([{x}, {y}, {x}], 2)", f"{x}.unsqueeze(2)", f"{x}.unsqueeze(-1)"]))
    for _ in range(w.rng.randint(1, 2)):
        kernel = [w.rng.randint(1, min(3, size)) for size in w.shape(made)[2:]]
        padding = [w.rng.choice([0, 0, k // 2, 1]) for k in kernel]
        stride = [w.rng.choice([1, 1, 2]) for _ in kernel]
        ins = w.shape(made)[1]
        groups = w.rng.choice([1, 1, ins])
        outs = groups * w.rng.randint(1, 2) if groups > 1 else w.rng.randint(1, 4)
        made = conv(w, made, outs, kernel, stride, padding, 1, groups, w.chance(0.3))
    if w.chance(0.5):
        w.let(w.rng.choice(["{x}.mean(2)", "{x}.select(2, 0)", "{x}.flatten(1, 2)", "{x}.sum(-1)"]).format(x=made))
