"""Print a term as its conv_einsum string."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from string import ascii_letters

from ce_fx.algebra.expression import Term
from ce_fx.algebra.index import Axes, Index, flat

_FREE = "trxyzuvpqmn"
"""Letters that are taken first where a name does not suggest one: channels out, then ranks."""

_PREFERRED = {1: "l", 2: "hw", 3: "dhw"}


def to_string(term: Term, output: Axes) -> str:
    """The conv_einsum string of a term, such as `bshw,rt,rs,rh,rw->bthw|hw`.

    An axis of several indices prints as several letters: the string is for the tensors so reshaped. The indices of a
    window share one letter. A letter is taken from the index's name (up to a `#`, after which lifted graphs number
    their indices); names that do not fit into one letter print as `(r1)`.
    """
    letters = name_indices(term, output)

    def text(axes: Axes) -> str:
        return "".join(letters[index] for index in flat(axes))

    operands = ",".join(text(factor.axes) for factor in term.factors)
    pipe = "".join(letters[w.out] for w in sorted(term.windows, key=lambda w: _place(w.out, output)))
    return f"{operands}->{text(output)}" + (f"|{pipe}" if pipe else "")


def name_indices(term: Term, output: Axes) -> dict[Index, str]:
    """A letter, or a `(name)`, for every index of a term; the indices of a window share theirs."""
    groups: dict[Index, Index] = {}
    for window in term.windows:
        for index in (window.features, window.out, *(tap.index for tap in window.taps)):
            groups[index] = window.features
    order = list(dict.fromkeys(groups.get(i, i) for i in (*_factor_indices(term), *flat(output))))
    places = sorted({w.features for w in term.windows}, key=order.index)
    spatial = dict(zip(places, _PREFERRED.get(len(places), ""), strict=False))
    names: dict[Index, str] = {i: i.name for i in order if i.name.isidentifier()}
    used = set(names.values())
    free = (letter for letter in _letters() if letter not in used)
    for index in order:
        if index in names:
            continue
        wishes = (spatial.get(index, ""), index.name.partition("#")[0])
        name = next((wish for wish in wishes if wish and wish not in used), None) or next(free)
        names[index] = name
        used.add(name)
    printed = {i: name if len(name) == 1 else f"({name})" for i, name in names.items()}
    return {**printed, **{index: printed[group] for index, group in groups.items() if group in printed}}


def _factor_indices(term: Term) -> Iterator[Index]:
    for factor in term.factors:
        yield from flat(factor.axes)


def _letters() -> Iterator[str]:
    yield from _FREE
    yield from ascii_letters
    yield from (f"i{n}" for n in count())


def _place(index: Index, output: Axes) -> int:
    indices = flat(output)
    return indices.index(index) if index in indices else len(indices)
