"""Views, concatenations and writes in place."""

from tests.branches.images import conv
from tests.branches.writer import _LARGEST, Skip, Writer, weight_of


def view_of(w: Writer, x: str) -> str:
    """An expression of another view of x."""
    shape = w.shape(x)
    n = len(shape)
    if n == 0:
        return f"{x}.unsqueeze(0)"
    order = list(range(n))
    w.rng.shuffle(order)
    a, b = w.rng.randrange(n), w.rng.randrange(n)
    cut = max(range(n), key=lambda dim: (shape[dim] > 1, w.rng.random()))
    half = max(1, shape[cut] // 2)
    merged = (*shape[: n - 2], shape[n - 2] * shape[n - 1]) if n > 1 else (1, *shape)
    forms = [
        f"{x}.permute({order})",
        f"{x}.transpose({a}, {b})",
        f"{x}.reshape({merged})",
        f"{x}.view({merged})",
        f"{x}.flatten(1)",
        f"{x}.unsqueeze({a})",
        f"{x}.unsqueeze({a}).squeeze({a})",
        f"{x}.unsqueeze(1).expand({(shape[0], 2, *shape[1:])})",
        f"{x}.contiguous()",
        f"{x}.mT",
        f"{x}.narrow({cut}, 0, {half})",
        f"{x}.narrow({cut}, {shape[cut] - half}, {half})",
        f"{x}[:1]",
        f"{x}.select({cut}, 0)",
        f"{x}.chunk(2, {cut})[0]",
        f"{x}.detach()",
    ]
    return w.rng.choice(forms)


def view(w: Writer) -> None:
    w.let(view_of(w, w.pick()))


def back(w: Writer) -> None:
    """A value that has no image's shape is made one, or the other way round."""
    x = w.pick(lambda value: value.numel() % 4 == 0 or value.ndim in (3, 4))
    shape = w.shape(x)
    if len(shape) == 4:
        w.let(f"{x}.flatten(2).transpose(1, 2)" if w.chance(0.5) else f"{x}.permute(0, 2, 3, 1)")
    elif len(shape) == 3:
        w.let(f"{x}.transpose(1, 2)" if w.chance(0.5) else f"{x}.unsqueeze(-1).expand(-1, -1, -1, 3)")
    else:
        w.let(f"{x}.reshape(2, 2, -1)")


def join(w: Writer) -> None:
    x = w.pick(lambda value: value.ndim >= 2)
    w.let(f"torch.cat([{x}, {w.like(x)}], 1)")


def write(w: Writer) -> None:
    """A write in place, to a value, an input or a view of one; its result may get a name of its own."""
    kept = {value.untyped_storage().data_ptr() for value in vars(w.env["self"]).values()}
    target = w.pick(lambda value: value.untyped_storage().data_ptr() not in kept)
    if target in w.inputs and w.chance(0.5):
        raise Skip
    if w.chance(0.3):
        target = view_of(w, target)
        if target.endswith("detach()") and w.chance(0.8):
            raise Skip
    shape = w.shape(target)
    others = [name for name in w.names if w.shape(name) == shape]
    other = w.rng.choice(others) if others and w.chance(0.7) else w.vector(target)
    spellings = [
        "{x}.add_({y})",
        "{x}.add_({y}, alpha={n})",
        "{x}.sub_({y})",
        "iadd({x}, {y})",
        "isub({x}, {y})",
        "imul({x}, {s})",
        "{x}.mul_({s})",
        "{x}.mul_({v})",
        "{x}.neg_()",
        "{x}.div_(4)",
        "{x}.relu_()",
        "{x}.add_({n})",
        "{x}.copy_({y})",
        "{x}.addcmul_({y}, {v})",
    ]
    line = w.rng.choice(spellings).format(x=target, y=other, n=w.number(), s=w.scalar(), v=w.vector(target))
    if w.chance(0.5):
        w.let(line)
    else:
        w.do(line)
    if any(w.of(f"{name}.abs().max()") > _LARGEST for name in w.names):  # torch refuses to read some views of others
        raise Skip


def border(w: Writer) -> None:
    """A value that is written over in parts, on one side or all around, mostly with what it was shifted by."""
    x = w.pick(lambda value: value.ndim >= 2)
    constant = w.vector(x)
    shifted = w.let(w.rng.choice(["{x} * {s} + {v}", "{x} + {v}", "{x} * {v}"]).format(x=x, s=w.number(), v=constant))
    dims = w.rng.choice([1, 2]) if w.of(shifted).ndim > 2 else 1
    wide = w.rng.choice([1, 1, 2])
    target = w.let(f"F.pad({shifted}, {(wide, wide) * dims})" if w.chance(0.8) else f"{shifted} * 1.5")
    if w.chance(0.1):
        w.let(f"{target} * 2")  # reads what is not written over yet
    size = len(w.shape(target))
    for dim in range(size - dims, size):
        for side in (f"slice(0, {wide})", f"slice({-wide}, None)"):
            if w.chance(0.1):
                continue
            where = ", ".join(["slice(None)"] * dim + [side])
            other = w.rng.choice([constant, constant, constant, w.vector(target), w.number(), f"{target}[({where})]"])
            w.do(f"setitem({target}, ({where},), {other})")
    if w.of(target).ndim in (3, 4) and w.chance(0.7):
        n = w.of(target).ndim - 2
        conv(w, target, w.rng.randint(1, 4), [w.rng.choice([1, 3])] * n, 1, w.rng.choice([0, 0, 0, 1]), 1, 1, False)
    elif w.chance(0.7):
        w.let(f"{target} @ {weight_of(w, w.shape(target)[-1], w.rng.randint(1, 4))}")
