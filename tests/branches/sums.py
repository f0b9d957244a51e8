"""Lines of sums, scalings and reductions."""

import re

from tests.branches.writer import Writer


def combined(w: Writer, a: str, b: str) -> str:
    """Two values added or subtracted in some spelling."""
    spellings = [
        "{a} + {b}",
        "{a} + {b}",
        "{a} - {b}",
        "{b} - {a}",
        "{a} + {s} * {b}",
        "{s} * {a} - {b}",
        "torch.add({a}, {b}, alpha={n})",
        "torch.sub({a}, {b}, alpha={n})",
        "torch.rsub({a}, {b}, alpha={n})",
        "sum([{a}, {b}])",
        "{a}.add({b})",
        "{a}.add_({b})",
        "{a}.add_({b}, alpha={n})",
        "{a}.sub_({b})",
        "iadd({a}, {b})",
        "isub({a}, {b})",
        "torch.addcmul({a}, {b}, {v}, value={n})",
        "({a} + {b}) * {s}",
        "-({a} - {b})",
        "({a} + {b}) / 2",
    ]
    spelling = w.rng.choice(spellings)
    fresh = {a, b}.isdisjoint(w.inputs) or w.chance(0.3)
    if re.search(r"_\(|iadd|isub", spelling) and not fresh:
        spelling = "{a} + {b}"
    return w.let(spelling.format(a=a, b=b, s=w.scalar(), n=w.number(), v=w.vector(b)))


def add_up(w: Writer, parts: list[str]) -> str:
    """Several values added up, in one go or one by one."""
    w.rng.shuffle(parts)
    if w.chance(0.15):
        return w.let(f"sum([{', '.join(parts)}])")
    total = parts[0]
    for part in parts[1:]:
        total = combined(w, total, part)
    return total


def add(w: Writer) -> None:
    a = w.pick()
    combined(w, a, w.like(a))


def affine(w: Writer) -> None:
    x = w.pick()
    spellings = [
        "{x} * {s}",
        "{s} * {x}",
        "-{x}",
        "{x} / 4",
        "{x} + {s}",
        "{s} - {x}",
        "{x} - {n}",
        "{x} * {v}",
        "{x} + {v}",
        "{v} - {x}",
        "{x} * {v} + {u}",
        "torch.addcmul({v}, {x}, {u})",
        "{x}.mul({n})",
        "{x}.clone()",
        "F.dropout({x}, 0.3, False)",
    ]
    w.let(w.rng.choice(spellings).format(x=x, s=w.scalar(), n=w.number(), v=w.vector(x), u=w.vector(x)))


def nonlinear(w: Writer) -> None:
    w.let(f"torch.{w.rng.choice(['relu', 'tanh'])}({w.pick()})")


def reduce(w: Writer) -> None:
    x = w.pick(lambda value: value.ndim >= 2)
    dim = w.rng.choice([-1, 1, 0, (1, -1), (0, 1)])
    keep = w.chance(0.6)
    small = w.let(f"{x}.{w.rng.choice(['sum', 'mean'])}({dim}, keepdim={keep}) * 0.2")
    if keep and w.chance(0.7):
        combined(w, x, small)
