"""Lines that cut values in parts and put them together, repeat them, and move axes."""

from tests.branches.families.space import after, before, is_space, mixing
from tests.branches.sums import add_up
from tests.branches.writer import Skip, Writer, weight_of


def split(w: Writer) -> None:
    """Parts of one axis, some of them processed, and joined, stacked or added up."""
    x = w.pick(lambda value: value.ndim >= 2 and max(value.shape) > 1)
    shape = w.shape(x)
    dim = w.rng.choice([d for d, size in enumerate(shape) if size > 1])
    size = shape[dim]
    first = w.rng.randint(1, size - 1)
    each = w.rng.randint(1, size)
    forms = [
        (f"{x}.split({each}, {dim})", -(-size // each)),
        (f"torch.split({x}, [{first}, {size - first}], dim={dim})", 2),
        (f"{x}.split_with_sizes(({first}, {size - first}), {dim})", 2),
        (f"torch.tensor_split({x}, [{first}], {dim})", 2),
        (f"torch.tensor_split({x}, 2, dim={dim})", 2),
        (f"{x}.unbind({dim})", size),
        (f"torch.unbind({x}, dim={dim - len(shape)})", size),
        *([(f"{x}.chunk(2, {dim})", 2)] if size % 2 == 0 else []),
    ]
    expression, count = w.rng.choice(forms)
    parts = w.several(expression, count)
    mixed = [_part(w, part) if w.chance(0.5) else part for part in parts[:4]]
    same = [part for part in mixed if w.shape(part) == w.shape(mixed[0])]
    axis = w.rng.randrange(len(w.shape(mixed[0]))) if w.shape(mixed[0]) else 0
    kind = w.rng.randrange(4)
    if kind == 0 or w.of(mixed[0]).ndim == 0:
        add_up(w, same)
    elif kind == 1:
        w.let(f"torch.stack([{', '.join(same)}], {axis})")
    elif kind == 2:
        y = w.let(f"torch.cat([{', '.join(same)}], {axis})")
        if is_space(w.of(y)):
            after(w, y)


def _part(w: Writer, part: str) -> str:
    shape = w.shape(part)
    if is_space(w.of(part)) and w.chance(0.6):
        return mixing(w, part)
    if len(shape) < 2:
        return w.let(f"{part} * {w.scalar()}")
    return w.let(f"{part} @ {weight_of(w, shape[-1], w.rng.choice([shape[-1], w.rng.randint(1, 4)]))}")


def scattered(w: Writer) -> None:
    """A part that is another value's, without a write."""
    x = before(w) if w.chance(0.5) else w.pick(lambda value: value.ndim >= 2)
    shape = w.shape(x)
    dim = w.rng.randrange(len(shape))
    length = w.rng.randint(1, shape[dim])
    start = w.rng.randint(0, shape[dim] - length)
    part = (*shape[:dim], length, *shape[dim + 1 :])
    source = w.rng.choice([f"{w.like(x)}.narrow({dim}, 0, {length})", f"{w.weight(length)}.sum().expand({part})"])
    end = w.rng.choice([start + length, start + length, start + length - shape[dim] or None])
    y = w.let(f"torch.slice_scatter({x}, {source}, {dim}, {start}, {end})")
    if is_space(w.of(y)):
        after(w, y)
    elif w.chance(0.7):
        with w.around():
            w.let(f"{y} @ {weight_of(w, shape[-1], 2)}")


def picked(w: Writer) -> None:
    """One position, or some, of one axis or two."""
    x = w.pick(lambda value: value.ndim >= 2)
    shape = w.shape(x)
    dim = w.rng.randrange(len(shape))
    size = shape[dim]
    at, length = w.rng.randrange(size), w.rng.randint(1, size)
    start = w.rng.randint(0, size - length)
    lead = ":, " * dim
    forms = [
        f"{x}.select({dim}, {at})",
        f"{x}.select({dim}, {at - size})",
        f"{x}[{lead}{at}]",
        f"{x}[{lead}{at - size}]",
        f"{x}[..., {w.rng.randrange(shape[-1])}]",
        f"{x}.narrow({dim}, {start}, {length})",
        f"torch.narrow({x}, {dim - len(shape)}, {start}, {length})",
        f"{x}[{lead}{start}:{start + length}]",
        f"{x}[{lead}None, {at}]",
        f"{x}[{lead}{start}:{start + length}:2]",
        f"{x}[{lead}[{at}, 0]]",
        f"torch.index_select({x}, {dim}, torch.tensor([{at}]))",
    ]
    y = w.let(w.rng.choice(forms))
    if is_space(w.of(y)):
        after(w, y)
    elif w.of(y).ndim >= 2 and w.chance(0.6):
        with w.around():
            w.let(f"{y} @ {weight_of(w, w.shape(y)[-1], w.rng.randint(1, 4))}")


def stack(w: Writer) -> None:
    """Values on a new axis, which is then contracted."""
    x = w.pick(lambda value: 2 <= value.ndim <= 4)
    values = [x, *(w.like(x) for _ in range(w.rng.randint(1, 2)))]
    n = w.of(x).ndim + 1
    dim = w.rng.randrange(n)
    y = w.let(f"torch.stack([{', '.join(values)}], {w.rng.choice([dim, dim - n])})")
    axes = "abcdef"[:n]
    rest = axes.replace(axes[dim], "")
    forms = [
        f"{y}.sum({dim})",
        f"{y}.mean({dim})",
        f"torch.einsum('{axes},{axes[dim]}->{rest}', {y}, {w.weight(len(values))})",
        f"torch.einsum('{axes}, {axes[dim]} z -> z{rest}', {y}, {w.weight(len(values), 2)})",
        f"torch.tensordot({y}, {w.weight(len(values), 2)}, dims=([{dim}], [0]))",
        f"{y}.flatten({max(dim - 1, 0)}, {max(dim, 1)})",
        f"{y}.unbind({dim})[-1]",
    ]
    w.let(w.rng.choice(forms))


def stacked_weights(w: Writer) -> None:
    """Layers whose weights are parts of one, and heads in a loop."""
    x = w.pick(lambda value: value.ndim in (2, 3))
    ins, outs, heads = w.shape(x)[-1], w.rng.randint(1, 3), w.rng.randint(2, 3)
    if w.chance(0.5):
        whole = w.weight(heads, ins, outs)
        parts = [w.let(f"{x} @ {whole}[{n}]") for n in range(heads)]
    else:
        whole = w.weight(heads * outs, ins)
        kernels = w.several(f"{whole}.chunk({heads})", heads, kernel=True)
        parts = [w.let(f"F.linear({x}, {kernel})") for kernel in kernels]
    if w.chance(0.5):
        w.let(f"torch.cat([{', '.join(parts)}], -1)")
    else:
        add_up(w, parts)


def repeat(w: Writer) -> None:
    x = w.pick(lambda value: 1 <= value.ndim <= 4)
    n = w.of(x).ndim
    times = [w.rng.choice([1, 1, 2, 3]) for _ in range(n)]
    dim = w.rng.randrange(n)
    y = w.let(
        w.rng.choice(
            [
                f"{x}.repeat({times})",
                f"{x}.repeat({[2, *times]})",
                f"torch.tile({x}, {tuple(times[: w.rng.randint(1, n)])})",
                f"torch.repeat_interleave({x}, 2, {dim})",
                f"{x}.repeat_interleave(3, dim={dim - n})",
                f"{x}.unsqueeze({dim}).expand({[-1] * dim + [2] + [-1] * (n - dim)})",
                f"{x}.sum({dim}, keepdim=True).expand_as({x})",
                f"torch.broadcast_to({x}, {(2, *w.shape(x))})",
                f"torch.roll({x}, 1, {dim})",
            ]
        )
    )
    if is_space(w.of(y)):
        after(w, y)


def axes(w: Writer) -> None:
    """Axes moved, split and merged, between two products."""
    x = w.pick(lambda value: 2 <= value.ndim <= 4)
    shape = w.shape(x)
    n = len(shape)
    a, b = w.rng.randrange(n), w.rng.randrange(n)
    divisors = [d for d in range(1, shape[a] + 1) if shape[a] % d == 0]
    part = w.rng.choice(divisors)
    low = w.rng.randrange(n)
    high = w.rng.randint(low, n - 1)
    forms = [
        f"{x}.movedim({a}, {b})",
        f"torch.movedim({x}, ({', '.join(map(str, {a, b}))},), ({', '.join(map(str, range(len({a, b}))))},))",
        f"{x}.unflatten({a}, ({part}, {shape[a] // part}))",
        f"{x}.unflatten({a}, (-1, {part})).transpose({a}, {a + 1}).flatten({a}, {a + 1})",
        f"{x}.flatten({low}, {high})",
        f"{x}.swapaxes({a}, {b})",
        f"{x}.ravel().view({w.rng.choice([shape, shape[::-1]])})",
        f"{x}.permute({w.rng.sample(range(n), n)})",
        f"{x}.view_as({w.like(x)})",
        f"{x}.unsqueeze({a}).transpose({a}, {n}).squeeze({n})",
        f"{x}.reshape({(shape[0], -1)})",
    ]
    if n == 4:
        factor = [r for r in (2,) if shape[1] % 4 == 0]
        down = [r for r in (2, 3) if shape[2] % r == 0 and shape[3] % r == 0]
        forms += [f"F.pixel_shuffle({x}, {r})" for r in factor] + [f"F.pixel_unshuffle({x}, {r})" for r in down]
        forms += [f"F.channel_shuffle({x}, {w.rng.choice([d for d in range(1, 9) if shape[1] % d == 0])})"]
        forms += [f"F.unfold({x}, 2)"]
    y = w.let(w.rng.choice(forms))
    if w.of(y).ndim > 4 or w.shape(y)[-1] > 40:
        raise Skip
    with w.around():
        if is_space(w.of(y)) and w.chance(0.4):
            after(w, y)
        elif w.of(y).ndim >= 2 and w.chance(0.7):
            w.let(f"{y} @ {weight_of(w, w.shape(y)[-1], w.rng.randint(1, 4))}")
