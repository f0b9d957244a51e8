"""What a `torch.einsum` costs: one `Op` for each pair of operands that it joins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from string import ascii_letters

import torch

from ce_fx.plan.ops import Op


def einsum_ops(equation: str, shapes: Sequence[tuple[int, ...]], out: int) -> tuple[Op, ...]:
    """Pair after pair, in the order that torch takes: opt_einsum's path where it is installed, else left to right.

    Args:
        equation: as torch takes it, with ellipsis, spaces or implicit output.
        shapes: of the operands.
        out: elements of the result.
    """
    equation = lettered(equation, shapes)
    if len(shapes) == 1:
        return (Op("mul", out, 1, 1, out, prod(shapes[0]) + out),)
    inputs, _, output = _explicit(equation).partition("->")
    terms = inputs.split(",")
    sizes = {
        c: max(s for t, sh in zip(terms, shapes, strict=True) for x, s in zip(t, sh, strict=True) if x == c)
        for c in set("".join(terms))
    }
    return tuple(_pair(left, right, rest, sizes) for left, right, rest in _einsum_pairs(terms, output, shapes))


def lettered(equation: str, shapes: Sequence[tuple[int, ...]]) -> str:
    """An equation without ellipsis: its axes get letters, aligned at the last one."""
    equation = equation.replace(" ", "")
    if "..." not in equation:
        return equation
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    counts = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True)]
    free = [c for c in ascii_letters if c not in equation][: max(counts)]
    terms = [
        term.replace("...", "".join(free[len(free) - n :])) if "..." in term else term
        for term, n in zip(terms, counts, strict=True)
    ]
    if not arrow:
        named = [c for c in equation if c.isalpha()]
        output = "..." + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    return f"{','.join(terms)}->{output.replace('...', ''.join(free))}"


def _explicit(equation: str) -> str:
    equation = equation.replace(" ", "")
    if "->" in equation:
        return equation
    letters = equation.replace(",", "")
    return f"{equation}->{''.join(sorted(c for c in set(letters) if letters.count(c) == 1))}"


def _einsum_pairs(terms: list[str], output: str, shapes: Sequence[tuple[int, ...]]) -> Iterable[tuple[str, str, str]]:
    """The pairs that torch.einsum joins: (left letters, right letters, letters of the result)."""
    path: Sequence[Sequence[int]] = [(0, 1)] * (len(terms) - 1)
    if len(terms) > 2 and torch.backends.opt_einsum.enabled and torch.backends.opt_einsum.is_available():
        import opt_einsum

        strategy = torch.backends.opt_einsum.strategy or "auto"
        path = opt_einsum.contract_path(f"{','.join(terms)}->{output}", *shapes, shapes=True, optimize=strategy)[0]
    else:
        path = [(0, 1), *((0, n) for n in range(len(terms) - 2, 0, -1))]
    for pair in path:
        chosen = [terms[n] for n in pair]
        terms = [t for n, t in enumerate(terms) if n not in pair]
        while len(chosen) > 1:
            left, right = chosen[:2]
            used = set(output).union(*terms, *chosen[2:])
            rest = "".join(dict.fromkeys(c for c in left + right if c in used))
            yield left, right, rest
            chosen = [rest, *chosen[2:]]
        terms = [*terms, *chosen]


def _pair(left: str, right: str, rest: str, sizes: dict[str, int]) -> Op:
    both = set(left) & set(right)

    def size(letters: Iterable[str]) -> int:
        return prod(sizes[c] for c in set(letters))

    k = size(both - set(rest))
    batch = size(both & set(rest))
    rows, columns = size(set(left) - both), size(set(right) - both)
    elements = size(left) + size(right) + size(rest)
    family = "mul" if k == 1 else "bmm" if batch > 1 else "mm"
    return Op(family, batch * k * rows * columns, k, columns, rows, elements)
