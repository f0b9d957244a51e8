"""Kernels that are made from weights: structured ones, and nonlinear functions of a weight."""

from tests.branches.images import conv, is_image
from tests.branches.writer import Writer, weight_of


def _used(w: Writer, make) -> None:
    """A kernel of some layer; `make` gives its expression by its shape, and the layer is counted with it."""
    x = w.pick(lambda value: value.ndim >= 2)
    if is_image(w.of(x)) and w.chance(0.6):
        n, ins, outs = w.of(x).ndim - 2, w.shape(x)[1], w.rng.randint(1, 4)
        kernel = w.let(make(w, (outs, ins, *[w.rng.choice([1, 2, 3])] * n)), True)
        layers = [f"F.conv{n}d({x}, {kernel}, None, 1, {w.rng.randint(0, 1)})"]
    else:
        ins, outs = w.shape(x)[-1], w.rng.randint(1, 4)
        kernel = w.let(make(w, (ins, outs)), True)
        layers = [
            f"{x} @ {kernel}",
            f"F.linear({x}, {kernel}.t())",
            f"torch.einsum('...i, i o -> ...o', {x}, {kernel})",
        ]
    y = w.let(w.rng.choice(layers))
    if is_image(w.of(y)) and w.chance(0.4):
        with w.around():
            conv(w, y, 2, [1] * (w.of(y).ndim - 2), 1, 0, 1, 1, False)


def structured(w: Writer) -> None:
    _used(w, _structure)


def _structure(w: Writer, shape: tuple[int, ...]) -> str:
    """Multilinear in weights."""
    rank, rows, rest = w.rng.randint(1, 3), shape[0], shape[1:]
    cols = 1
    for size in rest:
        cols *= size
    factor = lambda size: w.rng.choice([d for d in range(1, size + 1) if size % d == 0])
    parts = [factor(size) for size in shape]
    pair = w.weight(*parts), w.weight(*(size // part for size, part in zip(shape, parts, strict=True)))
    low = lambda: f"({w.weight(rows, rank)} @ {w.weight(rank, cols)}).view({shape})"
    forms = [
        lambda: f"torch.kron({pair[0]}, {pair[1]})",
        lambda: f"torch.kron({pair[0]}, {pair[1]}) + {w.weight(*shape)}",
        lambda: f"{low()} * {low()}",  # Hadamard products of low rank
        lambda: f"{w.weight(*shape)} * {low()}",
        lambda: f"{w.weight(*shape)} + {w.scalar()} * ({low()} * {low()})",
        lambda: f"torch.outer({w.weight(rows)}, {w.weight(cols)}).reshape({shape})",
        lambda: (
            f"torch.einsum('a r, r s, s b -> a b', {w.weight(rows, rank)}, {w.weight(rank, 2)}, "
            f"{w.weight(2, cols)}).reshape({shape})"
        ),
        lambda: (
            f"torch.linalg.multi_dot([{w.weight(rows, 2)}, {w.weight(2, rank)}, {w.weight(rank, cols)}]).view({shape})"
        ),
        lambda: f"torch.cat([{w.weight(1, *rest)}, {w.weight(rows, *rest)}])[:{rows}]",
        lambda: f"torch.stack([{', '.join(w.weight(*rest) for _ in range(rows))}])",
        lambda: f"{w.weight(*rest)}.repeat({(rows, *(1 for _ in rest))})",
        lambda: f"{w.weight(*shape)} - {w.weight(*shape)}.mean(0, keepdim=True)",
        lambda: f"{w.weight(*shape)}.roll(1, 0)",
        lambda: f"{w.weight(*shape)}.flip(-1)",
        lambda: f"{w.weight(2 * rows, *rest)}[::2]",
        lambda: f"{w.weight(*rest, rows)}.movedim(-1, 0)",
        lambda: f"sum([{w.weight(*shape)}, {low()}, {low()}])",
    ]
    if len(shape) == 2 and shape[0] == shape[1]:
        forms += [lambda: f"torch.diag_embed({w.weight(rows)})", lambda: f"torch.diag({w.weight(rows)})"]
    if shape[-1] == 3 and len(shape) > 2:
        one = (*shape[:2], *(1 for _ in shape[2:]))
        forms += [lambda: f"F.pad({w.weight(*one)}, {(1, 1) * (len(shape) - 2)}) + {w.weight(*shape)}"] * 3
    return w.rng.choice(forms)()


def nonlinear(w: Writer) -> None:
    _used(w, _function)


def _function(w: Writer, shape: tuple[int, ...]) -> str:
    """Of weights only, and nonlinear: a leaf by itself."""
    x, y = w.weight(*shape), weight_of(w, *shape)
    gain = w.weight(shape[0], *(1 for _ in shape[1:]))
    dims = tuple(range(1, len(shape)))
    forms = [
        f"F.softmax({x}, {w.rng.randrange(len(shape))})",
        f"{x} / {x}.norm()",
        f"{gain} * ({x} / {x}.norm(dim={dims}, keepdim=True))",
        f"{gain} * F.normalize({x}, dim=1)",
        f"torch.exp({x}) * 0.3",
        f"torch.tanh({y})",
        f"{y} * torch.sigmoid({x})",
        f"{x}.abs() + {y}",
        f"({x} - {x}.mean({dims}, keepdim=True)) / torch.sqrt({x}.var({dims}, keepdim=True, correction=0) + 0.1)",
        f"{x} * ({y} > 0)",
        f"torch.sign({x}) * {x}.abs().mean()",
        f"{x} + ({x}.round() - {x}).detach()",
    ]
    if len(shape) == 2 and shape[0] == shape[1]:
        forms += [
            f"torch.linalg.inv({x})",
            f"torch.linalg.inv(torch.matrix_exp({x}))",
            f"torch.matrix_exp({x} - {x}.t())",
        ]
    return w.rng.choice(forms)
