"""Lines of layers as models have them: norms in eval, scales, groups, transposed convolutions, kernels read twice."""

from tests.branches.families.space import after, before, is_space, mixing
from tests.branches.images import conv
from tests.branches.sums import combined
from tests.branches.writer import Skip, Writer, weight_of


def norm(w: Writer) -> None:
    """Batch norm in eval.

    The batch is never 1: torch's own has wrong gradients there if that of its result has permuted strides (CPU).
    """
    x = w.pick(lambda value: value.ndim in (2, 3, 4, 5) and value.shape[0] > 1)
    with w.around():
        if is_space(w.of(x)) and w.chance(0.5):
            x = mixing(w, x) if w.chance(0.5) else conv(w, x, 3, [2] * (w.of(x).ndim - 2), 1, 1, 1, 1, w.chance(0.3))
    c = w.shape(x)[1]
    mean, var = w.buffer(c), w.buffer(c)
    weight, bias = (w.weight(c) if w.chance(0.75) else None for _ in range(2))
    eps = w.rng.choice([1e-5, 1e-3, 0.1, 0.0])
    y = w.let(f"F.batch_norm({x}, {mean}, {var}, {weight}, {bias}, False, 0.1, {eps})")
    if is_space(w.of(y)):
        after(w, y)


def written_norm(w: Writer) -> None:
    """The same by its formula, or a norm by statistics that are weights."""
    x = w.pick(lambda value: value.ndim >= 2)
    c, ones = w.shape(x)[1], (1,) * (w.of(x).ndim - 2)
    view = lambda name: f"{name}.view({(1, -1, *ones)})" if ones or w.chance(0.5) else name
    mean, var, gain, bias = w.buffer(c), w.buffer(c), w.weight(c), w.weight(c)
    eps = w.rng.choice([" + 1e-5", " + 0.1", ""])
    root = w.rng.choice(["torch.sqrt({v}{e})", "torch.sqrt({v}){e}", "1 / torch.rsqrt({v}{e})", "({v}{e}) ** 0.5"])
    root = root.format(v=view(var), e=eps)
    if w.chance(0.5):
        w.let(f"({x} - {view(mean)}) / ({root}) * {view(gain)} + {view(bias)}")
    else:
        r = w.let(f"torch.rsqrt({var}{eps})", True)
        scale = w.let(f"{gain} * {r}", True)
        shift = w.let(f"{bias} - {mean} * {scale}", True)
        w.let(f"{x} * {view(scale)} + {view(shift)}")


def layer_scale(w: Writer) -> None:
    """`x + g * f(x)`, g a vector of channels or of the last axis, or a map of positions."""
    x = w.pick(lambda value: value.ndim >= 2)
    shape = w.shape(x)
    if is_space(w.of(x)) and w.chance(0.6):
        with w.around():
            body = mixing(w, x, shape[1])
        ones = ", None" * (len(shape) - 2)
        gain = f"{w.weight(shape[1])}[:{ones}]" if w.chance(0.5) else w.weight(*shape[1:2], *(1 for _ in shape[2:]))
        gain = w.weight(1, 1, *shape[2:]) if w.chance(0.2) else gain
    else:
        with w.around():
            body = w.let(f"{x} @ {weight_of(w, shape[-1], shape[-1])}")
        gain = w.weight(shape[-1]) if w.chance(0.7) else w.weight(*shape[-2:-1], 1)
    scaled = w.let(w.rng.choice([f"{gain} * {body}", f"{body} * {gain}", f"torch.mul({body}, {gain})"]))
    combined(w, x, scaled) if w.chance(0.7) else None


def divided(w: Writer) -> None:
    """By a tensor that is a weight, or computed from one."""
    x = before(w) if w.chance(0.5) else w.pick(lambda value: value.ndim >= 2)
    shape = w.shape(x)
    size = shape[-1]
    channels = (shape[1], *(1 for _ in shape[2:])) if len(shape) > 2 else (size,)
    below = [w.buffer(size), f"torch.exp({w.weight(*channels)})", f"torch.sqrt({w.buffer(*channels)})"]
    below += [f"({w.buffer(*channels)} + 0.5)", f"{w.buffer()}", f"{w.weight(*channels)}.norm()"]
    y = w.let(f"{w.rng.choice(['{x} / {d}', 'torch.div({x}, {d})']).format(x=x, d=w.rng.choice(below))}")
    if is_space(w.of(y)):
        after(w, y)


def scalar(w: Writer) -> None:
    """Scaled or shifted by a tensor without dims."""
    x, y = w.pick(), w.pick()
    s, t = w.weight(), w.weight()
    a, b = w.weight(3), w.weight(2, 3)
    scalars = [s, f"({s} * {t})", f"({s} + {t})", f"{a}.sum()", f"{a}[0]", f"{a}.mean()", f"torch.dot({a}, {a})"]
    scalars += [f"({b} @ {a}).sum()", f"{s}.exp()", f"torch.sigmoid({s})", f"(1 - {s})", f"{y}.mean()", f"{b}[1, 0]"]
    scalars += [f"torch.trace({b} @ {b}.t())", f"{y}.sum() * 0.1", f"({s} * {y}.mean())", f"{a}.view(3, 1)[1]"]
    one = w.rng.choice(scalars)
    w.let(w.rng.choice(["{x} * {s}", "{s} * {x}", "{x} + {s}", "{s} - {x}", "{x}.mul({s}) + {x}"]).format(x=x, s=one))


def same(w: Writer) -> None:
    """What does nothing, or little, in rare spellings."""
    x = before(w) if w.chance(0.5) else w.pick(lambda value: value.ndim >= 2)
    a, n = w.rng.randrange(w.of(x).ndim), w.number()
    forms = [
        f"{x}.to(torch.float64)",
        f"{x}.type_as({w.pick()})",
        f"{x}.to({w.pick()})",
        f"torch.clone({x})",
        f"torch.positive({x})",
        f"torch.negative({x})",
        f"torch.multiply({x}, {n})",
        f"torch.multiply({w.weight(w.shape(x)[-1])}, {x})",
        f"torch.true_divide({x}, 4)",
        f"{x}.resolve_conj().resolve_neg()",
        f"{x}.real",
        f"{x}.conj()",
        f"{x}.contiguous().view(-1).view({w.shape(x)})",
        f"F.dropout{1 if w.of(x).ndim < 4 else 2}d({x}, 0.3, False)",
        f"F.alpha_dropout({x}, 0.3, False)",
        f"F.dropout({x}, 0.0, True)",
        f"{x}.adjoint().mH",
        f"torch.concat([{x}, {x}], {a})",
        f"{x}.unsqueeze({a}).unsqueeze(0).squeeze((0, {a + 1}))",
        f"{x}.unsqueeze(0).squeeze(0)",
        f"{x}.squeeze()",
        f"{x}.swapdims(0, {a}).swapdims(0, {a})",
        f"torch.moveaxis({x}, 0, {a})",
        f"torch.moveaxis({x}, (0, {a}), ({a}, 0))" if a else f"torch.moveaxis({x}, -1, 0)",
        f"{x}.flatten().reshape_as({x})",
    ]
    y = w.let(w.rng.choice(forms))
    if is_space(w.of(y)):
        after(w, y)


def grouped(w: Writer) -> None:
    """Groups that are not the channels, and more than one channel out of every channel."""
    x = before(w)
    if w.shape(x)[1] == 1 or w.chance(0.3):
        with w.around():
            x = mixing(w, x, w.rng.choice([2, 4, 6]))
    ins, sizes = w.shape(x)[1], w.shape(x)[2:]
    groups = w.rng.choice([g for g in range(1, ins + 1) if ins % g == 0 and (g > 1 or ins == 1)])
    kernel = [w.rng.randint(1, min(3, size)) for size in sizes]
    padding, dilation = [w.rng.randint(0, 2) for _ in sizes], [w.rng.randint(1, 2) for _ in sizes]
    stride = [w.rng.choice([1, 1, 2, 3]) for _ in sizes]
    y = conv(w, x, groups * w.rng.randint(1, 3), kernel, stride, padding, dilation, groups, w.chance(0.3))
    after(w, y)


def named_padding(w: Writer) -> None:
    """Padding by name, also of one image without a batch."""
    x = before(w)
    n = w.of(x).ndim - 2
    ins, outs = w.shape(x)[1], w.rng.randint(1, 4)
    kernel, dilation = [w.rng.randint(1, 4) for _ in range(n)], [w.rng.randint(1, 2) for _ in range(n)]
    if w.chance(0.3):
        x = f"{x}[0]"
    groups = w.rng.choice([1, ins])
    weight = weight_of(w, outs * groups, ins // groups, *kernel)
    name = w.rng.choice(["same", "same", "valid"])
    y = w.let(f"F.conv{n}d({x}, {weight}, padding='{name}', dilation={dilation}, groups={groups})")
    if w.of(y).ndim == n + 2:
        after(w, y)


def transposed(w: Writer) -> None:
    """With groups, dilation, output padding and a bias."""
    x = before(w)
    ins, n = w.shape(x)[1], w.of(x).ndim - 2
    groups = w.rng.choice([g for g in (1, 1, 2, 3, ins) if ins % g == 0])
    outs = w.rng.randint(1, 3)
    kernel, stride = [w.rng.randint(1, 3) for _ in range(n)], [w.rng.randint(1, 3) for _ in range(n)]
    dilation = [w.rng.randint(1, 2) for _ in range(n)]
    padding = [w.rng.randint(0, 1) for _ in range(n)]
    extra = [w.rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    weight = weight_of(w, ins, outs, *kernel)
    bias = w.weight(outs * groups) if w.chance(0.3) else None
    args = f"{stride}, {padding}, {extra}, {groups}, {dilation}"
    after(w, w.let(f"F.conv_transpose{n}d({x}, {weight}, {bias}, {args})"))


def shared(w: Writer) -> None:
    """One kernel in two layers that follow each other."""
    x = w.pick(lambda value: value.ndim >= 2)
    shape = w.shape(x)
    if is_space(w.of(x)) and w.chance(0.6):
        n, c = len(shape) - 2, shape[1]
        if c > 6:
            raise Skip
        k, groups = w.rng.choice([1, 2, 3]), w.rng.choice([1, c])
        weight = weight_of(w, c, c // groups, *[k] * n)
        padding = w.rng.choice([0, k // 2])
        one = lambda value: w.let(f"F.conv{n}d({value}, {weight}, None, 1, {padding}, 1, {groups})")
    else:
        weight = weight_of(w, shape[-1], shape[-1])
        one = lambda value: w.let(w.rng.choice([f"{value} @ {weight}", f"F.linear({value}, {weight})"]))
    first = one(x)
    second = one(first)
    if w.of(first).shape == w.of(second).shape and w.chance(0.5):
        combined(w, first, second)


def tied(w: Writer) -> None:
    """There by a weight and back by its transpose."""
    x = w.pick(lambda value: value.ndim >= 2)
    shape = w.shape(x)
    if is_space(w.of(x)) and w.chance(0.5):
        n, k, stride = len(shape) - 2, w.rng.choice([1, 2, 3]), w.rng.choice([1, 2])
        weight = weight_of(w, w.rng.randint(1, 3), shape[1], *[k] * n)
        down = w.let(f"F.conv{n}d({x}, {weight}, None, {stride})")
        w.let(f"F.conv_transpose{n}d({down}, {weight}, None, {stride})")
        return
    weight = weight_of(w, w.rng.randint(1, 3), shape[-1])
    down = w.let(f"F.linear({x}, {weight})")
    w.let(w.rng.choice([f"{down} @ {weight}", f"F.linear({down}, {weight}.t())"]))


def one_by_one(w: Writer) -> None:
    """The matrix of a 1x1 convolution in a matmul, and the other way round."""
    x = w.pick(lambda value: value.ndim == 4)
    ins, outs = w.shape(x)[1], w.rng.randint(1, 4)
    if w.chance(0.5):
        weight = w.weight(outs, ins, 1, 1)
        matrix = f"{weight}.flatten(1)"
    else:
        matrix = w.weight(outs, ins)
        weight = f"{matrix}[:, :, None, None]"
    a = w.let(f"F.conv2d({x}, {weight})")
    b = w.let(f"({matrix} @ {x}.flatten(2)).view({w.shape(a)})")
    combined(w, a, b)
