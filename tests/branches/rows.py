"""Lines of matrix products."""

import torch

from tests.branches.sums import add_up, combined
from tests.branches.writer import Writer, weight_of


def is_rows(value: torch.Tensor) -> bool:
    return value.ndim in (2, 3, 4)


def product(w: Writer, x: str, outs: int) -> str:
    """The last axis of x, or the one before, multiplied by a matrix."""
    *lead, rows, cols = w.shape(x)
    kind = w.rng.randrange(9)
    if kind < 3:
        return w.let(f"F.linear({x}, {weight_of(w, outs, cols)}, {w.weight(outs) if w.chance(0.4) else None})")
    if kind < 5:
        return w.let(f"{x} @ {weight_of(w, cols, outs)}")
    if kind == 5:
        return w.let(f"torch.einsum('...i,io->...o', {x}, {weight_of(w, cols, outs)})")
    if kind == 6:
        return w.let(f"torch.tensordot({x}, {weight_of(w, cols, outs)}, ([-1], [0]))")
    if kind == 7:
        rank = w.rng.randint(1, 3)
        middle = w.let(f"{x} @ {weight_of(w, cols, rank)}")
        return w.let(f"{middle} @ {weight_of(w, rank, outs)}")
    rank = w.rng.randint(1, 2)
    return w.let(f"torch.einsum('...i,ir,or->...o', {x}, {w.weight(cols, rank)}, {w.weight(outs, rank)})")


def matmuls(w: Writer) -> None:
    """Products of one or two inputs with matrices, added up."""
    x = w.pick(is_rows)
    y = w.like(x) if w.chance(0.4) else x
    outs = w.rng.choice([w.shape(x)[-1], w.rng.randint(1, 5)])
    parts = [product(w, w.rng.choice([x, x, y]), outs) for _ in range(w.rng.randint(1, 3))]
    if outs == w.shape(x)[-1] and w.chance(0.4):
        parts.append(x)
    add_up(w, parts)


def shared_matrix(w: Writer) -> None:
    x = w.pick(is_rows)
    y = w.like(x)
    weight = weight_of(w, w.shape(x)[-1], w.rng.randint(1, 5))
    if w.chance(0.5):
        w.let(f"{combined(w, x, y)} @ {weight}")
    else:
        add_up(w, [w.let(f"{x} @ {weight}"), w.let(f"{y} @ {weight}")])


def addmm(w: Writer) -> None:
    x = w.pick(lambda value: value.ndim in (2, 3))
    *lead, rows, cols = w.shape(x)
    outs = w.rng.randint(1, 4)
    scales = w.rng.choice(["", f", beta={w.number()}", f", alpha={w.number()}", f", beta=0.5, alpha={w.number()}"])
    if lead:
        weight = weight_of(w, lead[0], cols, outs)
        w.let(f"torch.baddbmm({weight_of(w, *w.rng.choice([(1, outs), (lead[0], 1, outs)]))}, {x}, {weight}{scales})")
    else:
        w.let(f"torch.addmm({w.weight(outs)}, {x}, {weight_of(w, cols, outs)}{scales})")


def between(w: Writer) -> None:
    """Products of values with each other."""
    x = w.pick(lambda value: value.ndim in (2, 3, 4))
    y = w.like(x)
    spellings = ["{x} @ {y}.mT", "{x} * {y}", "{x}.mT @ {y}", "({x} @ {y}.mT) @ {x}", "torch.addcmul({x}, {x}, {y})"]
    w.let(f"({w.rng.choice(spellings).format(x=x, y=y)}) * 0.2")
