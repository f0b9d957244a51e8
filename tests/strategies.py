"""Random conv_einsum calls for hypothesis: strings, shapes and options that fit together."""

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st


@dataclass
class Call:
    """A conv_einsum call."""

    string: str
    shapes: list
    options: dict = field(default_factory=dict)

    def tensors(self, dtype=torch.float64, requires_grad=False):
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in self.shapes]
        if dtype.is_complex:
            made = [t + 1j * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in made]
        return [t.requires_grad_(requires_grad) for t in made]


@st.composite
def calls(draw, most=6):
    """Up to 6 operands, up to 3 convolution letters with any number of kernels, groups, hyper-indices, broadcasts."""
    count = draw(st.integers(1, most))
    conv = list("hwd")[: draw(st.integers(0, 3))] if count > 1 else []
    letters = "abcr"
    sizes = {letter: draw(st.integers(1, 3)) for letter in letters}
    terms = [draw(st.lists(st.sampled_from(letters), max_size=3, unique=count > 2)) for _ in range(count)]
    features = {}
    for letter in conv:
        holders = draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=count, unique=True))
        features[letter] = holders[0]
        for n in holders:
            terms[n].insert(draw(st.integers(0, len(terms[n]))), letter)
    shapes = []
    for n, term in enumerate(terms):
        shape = []
        for letter in term:
            if letter not in conv:
                one = term.count(letter) == 1 and draw(st.integers(0, 7)) == 0
                shape.append(1 if one else sizes[letter])
            elif features[letter] == n:
                shape.append(draw(st.integers(5, 8)))
            else:
                shape.append(draw(st.integers(1, 4)))
        shapes.append(shape)
    used = sorted({letter for term in terms for letter in term} - set(conv))
    output = draw(st.permutations([x for x in used if draw(st.booleans())] + conv))
    string = ",".join(map("".join, terms)) + "->" + "".join(output) + ("|" + "".join(conv) if conv else "")
    return Call(string, shapes, draw(options(conv, terms, features)) if conv else {})


@st.composite
def options(draw, conv, terms, features):
    """Stride, dilation (per operand too), padding and mode."""
    dilation = draw(st.integers(1, 2))
    if draw(st.booleans()):
        dilation = {
            (n, letter): draw(st.integers(1, 3))
            for n, term in enumerate(terms)
            for letter in conv
            if letter in term and features[letter] != n
        }
    paddings = st.sampled_from(["same", "full", 1, (0, 2), (3, 1)])
    return {
        "stride": draw(st.one_of(st.integers(1, 3), st.fixed_dictionaries({x: st.integers(1, 3) for x in conv}))),
        "dilation": dilation,
        "padding": draw(st.one_of(paddings, st.fixed_dictionaries({x: paddings for x in conv}))),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "circular"])),
        "flip": draw(st.booleans()),
    }
