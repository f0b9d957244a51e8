"""Lines of products in spellings of their own: einsum, sums with a product, inner, outer and chained ones; complex."""

from tests.branches.sums import add_up
from tests.branches.writer import Skip, Writer, weight_of


def _letters(w: Writer, n: int) -> list[str]:
    return w.rng.sample("abcdefghijklmnXYZ", n)


def _spaced(w: Writer, equation: str) -> str:
    """With spaces as people write them, or without."""
    kind = w.rng.randrange(3)
    if kind == 0:
        return equation
    if kind == 1:
        return equation.replace(",", ", ").replace("->", " -> ")
    parts = equation.replace("...", "@")
    return " ".join(parts).replace("- >", "->").replace("@", "...")


def einsum(w: Writer) -> None:
    """A value and some weights: letters summed, kept, read by several; ellipsis, implicit output, diagonals."""
    x = w.pick(lambda value: 2 <= value.ndim <= 4)
    shape = w.shape(x)
    names = _letters(w, len(shape) + 3)
    sizes = dict(zip(names, [*shape, 2, 3, w.rng.randint(1, 3)], strict=True))
    mine, fresh = names[: len(shape)], names[len(shape) :]
    terms, tensors, seen = ["".join(mine)], [x], list(mine)
    for _ in range(w.rng.randint(1, 3)):
        pool = seen + fresh
        term = w.rng.sample(pool, w.rng.randint(1, min(3, len(pool))))
        if w.chance(0.1):
            term.append(term[0])  # its diagonal
        terms.append("".join(term))
        tensors.append(w.weight(*(sizes[letter] for letter in term)))
        seen += [letter for letter in term if letter not in seen]
    out = [letter for letter in seen if w.chance(0.55)][:4]
    w.rng.shuffle(out)
    if w.chance(0.3):  # leading axes by ellipsis
        lead = w.rng.randint(1, len(shape) - 1)
        hidden = set(mine[:lead])
        if all(hidden.isdisjoint(term) for term in terms[1:]):
            terms[0] = "..." + terms[0][lead:]
            out = [letter for letter in out if letter not in hidden]
            out.insert(w.rng.choice([0, 0, len(out)]), "...")
    order = list(range(len(terms)))
    if w.chance(0.3):
        w.rng.shuffle(order)
    equation = ",".join(terms[n] for n in order)
    if w.chance(0.85):
        equation += "->" + "".join(out)
    w.let(f"torch.einsum('{_spaced(w, equation)}', {', '.join(tensors[n] for n in order)})")


def einsum_of_two(w: Writer) -> None:
    """Two values of one shape, with a weight between them: attention without a softmax."""
    x = w.pick(lambda value: value.ndim in (2, 3, 4))
    y, z = w.like(x), w.like(x)
    d = w.shape(x)[-1]
    forms = [
        ("...qd,...kd->...qk", (x, y)),
        ("...qd,de,...ke->...qk", (x, weight_of(w, d, d), y)),
        ("...qd,...kd,...ke->...qe", (x, y, z)),
        ("...d,...d->...", (x, y)),
        ("...d,...d->...d", (x, y)),
        ("...d,...e->...de", (x, y)) if w.of(x).ndim < 4 else ("...d,...d->d...", (x, y)),
        ("...d,...d,d->...", (x, y, w.weight(d))),
    ]
    equation, tensors = w.rng.choice(forms)
    w.let(f"torch.einsum('{_spaced(w, equation)}', {', '.join(tensors)}) * 0.2")


def plus(w: Writer) -> None:
    """A sum with a product, each with its number."""
    x = w.pick(lambda value: value.ndim in (2, 3))
    y = w.like(x)
    *lead, rows, cols = w.shape(x)
    n, outs = lead[0] if lead else 1, w.rng.randint(1, 4)
    scales = "".join(f", {name}={w.rng.choice([0, 1, 2, 0.5, -1.5])}" for name in ("beta", "alpha") if w.chance(0.6))
    value = w.rng.choice(["", f", value={w.number()}"])
    if lead:
        right = weight_of(w, n, cols, outs)
        forms = [
            f"torch.baddbmm({w.weight(n, rows, outs)}, {x}, {right}{scales})",
            f"torch.baddbmm({w.weight(rows, 1)}, {x}, {right}{scales})",
            f"torch.addbmm({w.weight(rows, outs)}, {x}, {right}{scales})",
            f"torch.addbmm({w.weight(outs)}, {x}, {right}{scales})",
            f"torch.baddbmm({x}, {x}, {weight_of(w, n, cols, cols)}{scales})",
            f"torch.bmm({x}, {right})",
            f"torch.addcmul({x}, {y}, {w.weight(rows, 1)}{value})",
            f"torch.addcmul({w.weight(cols)}, {x}, {y}{value})",
        ]
    else:
        right = weight_of(w, cols, outs)
        forms = [
            f"torch.addmm({w.weight(rows, outs)}, {x}, {right}{scales})",
            f"torch.addmm({x}, {x}, {weight_of(w, cols, cols)}{scales})",
            f"torch.addmm({w.weight(1, outs)}, {x}, {right}{scales})",
            f"torch.addmv({w.weight(rows)}, {x}, {w.weight(cols)}{scales})",
            f"torch.addmv({w.weight(1)}, {x}, {w.weight(cols)}{scales})",
            f"torch.addr({x}, {w.weight(rows)}, {w.weight(cols)}{scales})",
            f"torch.addr({x}, {x} @ {w.weight(cols)}, {w.weight(cols)}{scales})",
            f"torch.mv({x}, {w.weight(cols)})",
            f"torch.addcmul({x}, {y}, {x}{value})",
            f"torch.addcmul({w.weight()}, {x}, {w.weight(cols)}{value})",
        ]
    first = w.let(f"({w.rng.choice(forms)}) * 0.5")
    if w.of(first).ndim >= 2 and w.chance(0.4):
        w.let(f"{first} @ {weight_of(w, w.shape(first)[-1], 2)}")


def product(w: Writer) -> None:
    """Inner, outer, Kronecker and chained products, tensordot and bilinear forms."""
    x = w.pick(lambda value: value.ndim in (2, 3))
    y = w.like(x)
    *lead, rows, cols = w.shape(x)
    outs = w.rng.randint(1, 3)
    both = range(-2, 0)
    forms = [
        f"torch.inner({x}, {weight_of(w, outs, cols)})",
        f"torch.inner({x}, {w.weight(2, outs, cols)})" if not lead else f"torch.inner({x}, {w.weight(cols)})",
        f"torch.tensordot({x}, {weight_of(w, cols, outs)}, dims=1)",
        f"torch.tensordot({x}, {w.weight(rows, cols, outs)}, 2)",
        f"torch.tensordot({x}, {w.weight(cols, rows, outs)}, ([{both[0]}, -1], [1, 0]))",
        f"torch.linalg.vecdot({x}, {y})",
        f"torch.linalg.vecdot({x}, {w.weight(cols)}, dim=-1)",
        f"F.bilinear({x}, {y}, {w.weight(outs, cols, cols)}, {w.weight(outs) if w.chance(0.5) else None})",
        f"torch.matmul({w.weight(outs, rows)}, {x})",
        f"{w.weight(rows)} @ {x}",
        f"{x} @ {w.weight(cols)}",
        f"torch.kron({x}, {w.weight(1, 2)})",
        f"torch.kron({w.weight(2, 1)}, {x})",
        f"torch.kron({x}, {w.weight(2)})",
        f"torch.linalg.matmul({x}, {weight_of(w, cols, outs)})",
    ]
    if not lead:
        forms += [
            f"torch.linalg.multi_dot([{x}, {w.weight(cols, 2)}, {w.weight(2, outs)}])",
            f"torch.linalg.multi_dot([{w.weight(rows)}, {x}, {w.weight(cols, outs)}])",
            f"torch.chain_matmul({x}, {w.weight(cols, 2)}, {w.weight(2, outs)})",
            f"torch.outer({x}[0], {w.weight(outs)})",
            f"torch.outer({x}[:, 0], {y}[0])",
            f"torch.dot({x}[0], {w.weight(cols)})",
            f"torch.vdot({x}[0], {y}[0])",
            f"{x}.T @ {y}",
        ]
    first = w.let(f"({w.rng.choice(forms)}) * 0.5")
    if w.of(first).ndim in (2, 3) and w.chance(0.4):
        w.let(f"{first} @ {weight_of(w, w.shape(first)[-1], 2)}")


def diagonal(w: Writer) -> None:
    """Diagonals, traces, and matrices that have one."""
    x = w.pick(lambda value: value.ndim in (2, 3))
    *lead, rows, cols = w.shape(x)
    square = w.let(f"{x} @ {weight_of(w, cols, rows)}")
    forms = [
        f"torch.diagonal({square}, dim1=-2, dim2=-1)",
        f"{square}.diagonal(0, -1, -2)",
        f"{square}.diagonal({w.rng.choice([1, -1])}, -1, -2)",
        f"torch.diag_embed({x}[..., 0])",
        f"{x} @ torch.diag_embed({w.weight(cols)})",
        f"torch.diag_embed({w.weight(rows)}) @ {x}",
        f"torch.diag_embed({x}, dim1=0, dim2=-1)",
    ]
    if not lead:
        forms += [f"torch.trace({square})", f"torch.diag({square})", f"torch.diag({w.weight(rows)}) @ {x}"]
    w.let(w.rng.choice(forms))


def complex_product(w: Writer) -> None:
    """Two values as one that is complex, multiplied by complex weights, and as a real one again."""
    x = w.pick(lambda value: value.ndim in (2, 3, 4))
    y = w.like(x)
    z = w.step(f"torch.complex({x}, {y})")
    for _ in range(w.rng.randint(1, 3)):
        shape = w.shape(z)
        cols, outs = shape[-1], w.rng.randint(1, 4)
        pair = lambda *sizes: f"torch.complex({w.weight(*sizes)}, {w.weight(*sizes)})"
        forms = [
            f"{z} @ {pair(cols, outs)}",
            f"({z} @ {pair(cols, 2)}) @ {pair(2, outs)}",
            f"F.linear({z}, {pair(outs, cols)})",
            f"{z} * {pair(cols)}",
            f"{z} * (0.5 + 1.5j)",
            f"{z} - {z}.conj()",
            f"torch.einsum('...i,ir,ro->...o', {z}, {pair(cols, 2)}, {pair(2, outs)})",
            f"{z} @ {pair(cols, outs)}.conj()",
            f"{z} @ {pair(outs, cols)}.mH",
            f"{z} @ {pair(cols, outs)} + {pair(outs)}",
            f"{z}.mean(-1, keepdim=True) + {z}",
        ]
        if len(shape) == 4:
            one = pair(outs, shape[1], 1, 1)
            forms += [f"F.conv2d({z}, {one})", f"F.conv2d({z}, {pair(outs, shape[1], 2, 2)}, None, 1, 1)"] * 2
        z = w.step(w.rng.choice(forms))
    real = w.rng.choice(["{z}.real", "{z}.imag", "{z}.abs()", "torch.view_as_real({z}).sum(-1)", "{z}.real + {z}.imag"])
    parts = [w.let(real.format(z=z))]
    if w.shape(parts[0]) == w.shape(x):
        add_up(w, [*parts, x])
    if max(w.shape(parts[0]), default=1) > 40:
        raise Skip
