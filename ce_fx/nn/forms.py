"""The factorised forms: one table from a form's name to its string.

A form writes the dense kernel `T[t, s, h, w]` of a layer as a product of small factors. Its *template* gives the terms
of the factors, for any number of convolution letters (none is a linear layer) and, where it splits the channels
`s -> (s1)(s2)..` and `t -> (t1)(t2)..`, for any number M of channel factors. The strings are those of conv_einsum
(arXiv 2401.03384, appendix on tensorial layers), with CP, Tucker, TT, TR, BT and HT as in Kolda & Bader 2009, Oseledets
2011, Zhao et al. 2016, De Lathauwer 2008 and Hackbusch & Kuehn 2009; interleaved groups are Zhang et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ce_fx.nn.errors import LayerError

Template: TypeAlias = Callable[[str, int], Sequence[str]]

CONV_LETTERS = ("", "h", "hw", "dhw")
"""The convolution letters by number of spatial axes."""


@dataclass(frozen=True)
class Form:
    """One way to write a kernel.

    Attributes:
        template: (convolution letters, number of channel factors) -> the terms of the factors.
        channels: "whole" (`s`, `t`), "split" (M letters each) or "interleaved" (two each, tied by one group number).
        dims: the least number of convolution letters.
    """

    template: Template
    channels: str = "whole"
    dims: int = 0

    def letters(self, side: str, count: int) -> tuple[str, ...]:
        """The channel letters of one side, "s" or "t", for `count` channel factors."""
        if self.channels == "whole":
            return (side,)
        return tuple(f"{side}{n}" for n in range(1, (2 if self.channels == "interleaved" else count) + 1))


def _pairs(count: int) -> list[str]:
    """The channel factors of a split form: `(t1)(s1)`, `(t2)(s2)`, .."""
    return [f"(t{n})(s{n})" for n in range(1, count + 1)]


def _modes(conv: str, count: int) -> list[str]:
    """The modes of a split kernel: its channel factors, and all convolution letters as one."""
    return [*_pairs(count), *([conv] if conv else [])]


def _chain(modes: Sequence[str]) -> list[str]:
    """A tensor train over modes: neighbours share a rank."""
    last = len(modes)
    left = ["" if n == 1 else f"(r{n - 1})" for n in range(1, last + 1)]
    right = ["" if n == last else f"(r{n})" for n in range(1, last + 1)]
    return [a + b + mode for a, b, mode in zip(left, right, modes, strict=True)]


def _ring(modes: Sequence[str]) -> list[str]:
    """A tensor ring over modes: a train whose ends share the rank r0."""
    last = len(modes)
    return [f"(r{n})(r{(n + 1) % last}){mode}" for n, mode in enumerate(modes)]


def _star(modes: Sequence[str], conv: str, rank: str, shared: str = "") -> list[str]:
    """Tucker over modes: a rank for each, number 0 for the convolution letters, and a core over all ranks."""
    names = [*(f"({rank}{n})" for n in range(1, len(modes) + 1))]
    spatial = f"({rank}0)" if conv else ""
    factors = [shared + name + mode for name, mode in zip(names, modes, strict=True)]
    return [*factors, *([shared + spatial + conv] if conv else []), shared + spatial + "".join(names)]


def _tree(modes: Sequence[str], conv: str) -> list[str]:
    """Hierarchical Tucker: ranks are merged in pairs, and the root joins the channels with the convolution letters."""
    level = [f"(r{n})" for n in range(1, len(modes) + 1)]
    terms = [name + mode for name, mode in zip(level, modes, strict=True)]
    nodes: list[str] = []
    while len(level) > (1 if conv else 2):
        merged = []
        for a, b in zip(level[::2], level[1::2], strict=False):
            merged.append(f"(q{len(nodes) + 1})")
            nodes.append(a + b + merged[-1])
        level = merged + level[len(level) - len(level) % 2 :]
    root = level[0] + "(r0)" if conv else "".join(level)
    return [*terms, *([f"(r0){conv}"] if conv else []), *nodes, root]


def _hierarchical(conv: str, _: int) -> list[str]:
    inner = "f" if "d" in conv else "d"  # the letter d is a convolution letter in three dimensions
    return ["at", "cs", f"e{conv}", f"ac{inner}", f"{inner}e"] if conv else ["at", "cs", "ac"]


def _tucker_full(conv: str, _: int) -> list[str]:
    modes = ["t", "s", *conv]
    ranks = [f"(r{n})" for n in range(1, len(modes) + 1)]
    return [*(r + mode for r, mode in zip(ranks, modes, strict=True)), "".join(ranks)]


def _strips(conv: str, _: int) -> list[str]:
    modes = ["s" + conv[:1], *conv[1:-1], "t" + conv[-1:]]
    return _chain(modes)


FORMS: dict[str, Form] = {
    "cp": Form(lambda conv, _: ["rt", "rs", *("r" + letter for letter in conv)]),
    "tucker": Form(lambda conv, _: ["(r1)t", "(r2)s", "(r1)(r2)" + conv]),
    "tucker_full": Form(_tucker_full, dims=1),
    "tt": Form(lambda conv, _: _chain(["t", *conv, "s"])),
    "tr": Form(lambda conv, _: _ring(["t", *conv, "s"])),
    "bt": Form(lambda conv, _: ["npt", "nqs", "npq" + conv]),
    "ht": Form(_hierarchical),
    "rcp": Form(lambda conv, m: ["r" + mode for mode in _modes(conv, m)], "split"),
    "rtk": Form(lambda conv, m: _star(_pairs(m), conv, "r"), "split"),
    "rtt": Form(lambda conv, m: _chain(_modes(conv, m)), "split"),
    "rtr": Form(lambda conv, m: _ring(_modes(conv, m)), "split"),
    "rbt": Form(lambda conv, m: _star(_pairs(m), conv, "p", shared="n"), "split"),
    "rht": Form(lambda conv, m: _tree(_pairs(m), conv), "split"),
    "separable": Form(lambda conv, _: ["rs" + conv, "rst"], dims=1),  # r: the depth multiplier
    "strips": Form(_strips, dims=2),  # 3x1, then 1x3
    "interleaved": Form(lambda conv, _: ["(s1)(s2)(t2)" + conv, "(s1)(t1)(t2)"], "interleaved"),
}
"""Every form by name. Their strings, for two convolution letters and M = 3, are in the documentation of `ce_fx.nn`."""


def find_form(name: str, dims: int, num_factors: int = 3) -> Form:
    """The form of a name, checked against the layer.

    Args:
        name: a key of `FORMS`.
        dims: number of convolution letters, 0 for a linear layer.
        num_factors: number of channel factors of a split form.

    Raises:
        LayerError: there is no such form, or it does not exist for so few letters or factors.
    """
    if name not in FORMS:
        raise LayerError(f"there is no form {name!r}; the forms are {', '.join(FORMS)}")
    form = FORMS[name]
    if not 0 <= dims < len(CONV_LETTERS):
        raise LayerError(f"form {name!r} has 0 to {len(CONV_LETTERS) - 1} spatial axes, not {dims}")
    if dims < form.dims:
        raise LayerError(f"form {name!r} needs at least {form.dims} spatial axes, and the layer has {dims}")
    least = 1 if dims else 2
    if form.channels == "split" and num_factors < least:
        raise LayerError(f"form {name!r} needs num_factors >= {least} here, not {num_factors}")
    return form


def form_string(name: str, dims: int = 2, num_factors: int = 3, grouped: bool = False) -> str:
    """The conv_einsum string of a form.

    Args:
        name: a key of `FORMS`, such as "rtt".
        dims: number of spatial axes: 0 (a linear layer), 1, 2 or 3.
        num_factors: M, the number of channel factors of a reshaped form.
        grouped: give every operand the leading letter `g` of a grouped convolution: one product for each group.

    Returns:
        Such as `"bshw,rt,rs,rh,rw->bthw|hw"`: the input, the factors, the output.

    Raises:
        LayerError: there is no such form, or not for so few axes or factors.
    """
    form = find_form(name, dims, num_factors)
    conv = CONV_LETTERS[dims]
    group = "g" if grouped else ""

    def side(letter: str) -> str:
        names = form.letters(letter, num_factors)
        return f"b{group}" + "".join(x if len(x) == 1 else f"({x})" for x in names) + conv

    factors = ",".join(group + term for term in form.template(conv, num_factors))
    return f"{side('s')},{factors}->{side('t')}" + (f"|{conv}" if conv else "")
