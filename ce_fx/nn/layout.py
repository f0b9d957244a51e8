"""What the string of a layer says: which letters are channels, groups and convolved, and how large they are.

A layer's string is a conv_einsum string whose first operand is the input: the batch letter, channel letters, and last
the letters after the pipe. Its output has the same form; the other operands are the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ce_fx.algebra.parser import parse, split
from ce_fx.nn.errors import LayerError

MOST_DIMS = 3


@dataclass(frozen=True)
class Layout:
    """A layer's string, read.

    Attributes:
        string: the string.
        terms: letters of each factor.
        batch: the batch letter.
        inputs, outputs: channel letters of input and output, groups included.
        conv: the letters after the pipe.
        sizes: of every letter but the batch letter; of a convolution letter, the size of the composed kernel.
        summands: how many products are summed into one entry of the output: the fan-in of the layer.
    """

    string: str
    terms: tuple[tuple[str, ...], ...]
    batch: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    conv: tuple[str, ...]
    sizes: dict[str, int]
    summands: int

    @property
    def grouped(self) -> tuple[str, ...]:
        """The channel letters that input and output begin with: the groups of a grouped convolution."""
        count = 0
        while self.inputs[count : count + 1] == self.outputs[count : count + 1] != ():
            count += 1
        return self.inputs[:count]

    @property
    def composed(self) -> tuple[str, ...]:
        """The convolution letters of several factors, whose kernels are composed."""
        return tuple(letter for letter in self.conv if sum(letter in term for term in self.terms) > 1)

    def size(self, letters: Sequence[str]) -> int:
        """The product of the sizes of some letters."""
        return prod(self.sizes[letter] for letter in letters)

    def shape(self, letters: Sequence[str]) -> tuple[int, ...]:
        """The sizes of some letters."""
        return tuple(self.sizes[letter] for letter in letters)


def read_layout(string: str, shapes: Sequence[Sequence[int]]) -> Layout:
    """Read the string of a layer.

    Args:
        string: such as `"bshw,rt,rs,rh,rw->bthw|hw"`.
        shapes: of the factors: all operands but the first.

    Raises:
        ExpressionError: it is no conv_einsum string, or the shapes do not fit it.
        LayerError: it is one, but not of a layer; the message names the letter.
    """
    (first, *rest), output, pipe = split(string)
    if output is None or "..." in string or not rest:
        raise LayerError(f"the string of a layer is 'input,factors->output|letters' without '...', not {string!r}")
    if len(rest) != len(shapes):
        raise LayerError(f"{string!r} has {len(rest)} factors, and the shapes of {len(shapes)} were given")
    conv, terms = tuple(pipe), tuple(map(tuple, rest))
    sides = {name: _side(name, term, conv, string) for name, term in (("input", first), ("output", output))}
    batch, channels = sides["input"]
    sizes = _sizes(terms, shapes, conv)
    _check(string, batch, channels, sides["output"], terms, sizes)
    large = 1 + sum(max(shape, default=1) for shape in shapes)  # so that the input is the features
    parse(string, [(1, *(sizes[x] for x in channels), *(large for _ in conv)), *shapes])
    summed = {x for term in terms for x in term if x not in sides["output"][1] and x not in conv}
    kernels = [
        n for term, shape in zip(terms, shapes, strict=True) for x, n in zip(term, shape, strict=True) if x in conv
    ]
    summands = prod(sizes[x] for x in summed) * prod(kernels)
    return Layout(string, terms, batch, channels, sides["output"][1], conv, sizes, summands)


def _side(name: str, term: Sequence[str], conv: tuple[str, ...], string: str) -> tuple[str, tuple[str, ...]]:
    """The batch letter and the channel letters of input or output."""
    letters = tuple(term)
    channels = letters[1 : len(letters) - len(conv)]
    if len(conv) > MOST_DIMS:
        raise LayerError(f"{string!r} convolves {len(conv)} letters; a layer has at most {MOST_DIMS}")
    if letters[len(letters) - len(conv) :] != conv or not channels:
        raise LayerError(
            f"the {name} of {string!r} must be the batch letter, channel letters, and last the convolution letters "
            f"'{''.join(conv)}' in the order of the pipe"
        )
    if len(set(letters)) < len(letters):
        raise LayerError(f"the {name} of {string!r} has a letter twice")
    return letters[0], channels


def _sizes(terms: Sequence[Sequence[str]], shapes: Sequence[Sequence[int]], conv: Sequence[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for n, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        if len(term) != len(shape):
            raise LayerError(f"factor {n} ('{' '.join(term)}') has {len(term)} letters and the shape {tuple(shape)}")
        for letter, size in zip(term, shape, strict=True):
            if size < 1:
                raise LayerError(f"letter '{letter}' of factor {n} has size {size}; sizes must be at least 1")
            if letter in conv:
                sizes[letter] = sizes.get(letter, 1) + size - 1
            elif sizes.setdefault(letter, size) != size:
                raise LayerError(f"letter '{letter}' has size {size} in factor {n} but {sizes[letter]} in another")
    return sizes


def _check(
    string: str,
    batch: str,
    channels: Sequence[str],
    output: tuple[str, tuple[str, ...]],
    terms: Sequence[Sequence[str]],
    sizes: dict[str, int],
) -> None:
    if batch in sizes or batch != output[0]:
        raise LayerError(f"the batch letter '{batch}' of {string!r} must come first in the output and be in no factor")
    for letter in (*channels, *output[1]):
        if letter not in sizes:
            raise LayerError(
                f"letter '{letter}' of {string!r} is in no factor, so its size is unknown; add one, or "
                f"convolve it: a letter after the pipe may have any size"
            )
    for n, term in enumerate(terms):
        if len(set(term)) < len(term):
            raise LayerError(f"factor {n} of {string!r} has a letter twice")
