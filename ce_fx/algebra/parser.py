"""Read conv_einsum strings.

The notation is einsum's, plus `|` and the convolution letters after it (conv_einsum, arXiv 2401.03384, section 3), with
torch's cross-correlation as the meaning of a convolution letter. See `parse`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ce_fx.algebra.expression import Factor, Term
from ce_fx.algebra.index import Axes, Index
from ce_fx.algebra.window import Tap, Window
from ce_fx.errors import ExpressionError
from ce_fx.sizes import hint, symbol

_TOKEN = re.compile(r"\.\.\.|\(\s*\w+\s*\)|[^\W\d_]")
_ELLIPSIS = "..."


@dataclass(frozen=True)
class ParsedExpression:
    """A string with shapes, read.

    Attributes:
        term: the product; `term.factors[n]` is operand n.
        output: the output axes, one index (or none, for a size of 1) each.
        flipped: pairs (operand, dims): the dims to reverse first (only with `flip=True`).
        sizes: of the output, symbolic where they are.
    """

    term: Term
    output: Axes
    flipped: tuple[tuple[int, tuple[int, ...]], ...] = ()
    sizes: tuple[Any, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class _Geometry:
    """How every letter is convolved, as the caller gave it."""

    stride: Any
    padding: Any
    dilation: Any
    circular: bool


def parse(
    string: str,
    shapes: Sequence[Sequence[int]],
    *,
    stride: Any = 1,
    padding: Any = "same",
    dilation: Any = 1,
    padding_mode: str = "zeros",
    flip: bool = False,
) -> ParsedExpression:
    """Read a conv_einsum string for operands of given shapes.

    Args:
        string: `"bshw,rt,rs,rh,rw->bthw|hw"`; spaces are ignored, `(r1)` is one index, `...` as in einsum, `|h,w` is
            `|hw`. Without a pipe the output may be left out, as in einsum.
        shapes: sizes of each operand. They may be symbolic: what is asked of them here becomes guards. Those of kernels
            are fixed, and that of features where the number of outputs would need a remainder (see `_holds`).
        stride: an int >= 1 for all convolution letters, or a dict by letter.
        padding: "same", "valid", "full", an int >= 0 or a pair (left, right); or a dict by letter of these.
        dilation: an int >= 1, or a dict by letter, or by (operand number, letter), which wins.
        padding_mode: "zeros" or "circular".
        flip: reverse every kernel first (a true convolution).

    Returns:
        The term, its output axes and the dims to reverse.

    Raises:
        ExpressionError: the string, a shape or an option does not fit; the message names operand, letter and sizes.
    """
    if padding_mode not in ("zeros", "circular"):
        raise ExpressionError(f"padding_mode must be 'zeros' or 'circular', not {padding_mode!r}")
    terms, output, conv = split(string)
    if len(terms) != len(shapes):
        raise ExpressionError(f"{string!r} has {len(terms)} operands, but {len(shapes)} were given")
    operands = [_expand(n, term, shape) for n, (term, shape) in enumerate(zip(terms, shapes, strict=True))]
    ndots = max((sum(letter.startswith(_ELLIPSIS) for letter, _ in operand) for operand in operands), default=0)
    dots = [f"{_ELLIPSIS}{n}" for n in reversed(range(ndots))]
    letters = _output(terms, output, dots, string)
    _check_conv(conv, operands, letters, string)
    geometry = _Geometry(stride, padding, dilation, padding_mode == "circular")
    _check_keys(geometry, conv, operands, terms)
    sizes = _sizes(operands, conv, terms)
    slides = {letter: _window(letter, operands, terms, geometry) for letter in conv}
    windows = {letter: window for letter, (window, _) in slides.items()}
    factors = tuple(
        Factor(n, tuple(_axis(n, letter, size, sizes, windows) for letter, size in operand))
        for n, operand in enumerate(operands)
    )
    for letter in letters:
        if letter not in sizes and letter not in windows:
            raise ExpressionError(f"output letter '{letter}' of {string!r} is in no operand")
    axes = tuple(
        (windows[letter].out,) if letter in windows else _ordinary(letter, sizes[letter]) for letter in letters
    )
    return ParsedExpression(
        Term(factors, tuple(windows.values())),
        axes,
        _flips(windows, operands) if flip else (),
        tuple(slides[letter][1] if letter in slides else sizes[letter] for letter in letters),
    )


def contracts(string: str) -> bool:
    """Whether a (valid) string sums a letter of two operands, or convolves: more than a broadcast multiply."""
    terms, output, conv = split(string)
    counts: dict[str, int] = {}
    for letter in (letter for term in terms for letter in set(term)):
        counts[letter] = counts.get(letter, 0) + 1
    kept = {letter for letter, count in counts.items() if count == 1} if output is None else set(output)
    return bool(conv) or any(count > 1 and letter not in kept for letter, count in counts.items())


def split(string: str) -> tuple[list[list[str]], list[str] | None, list[str]]:
    """The letters of each operand, of the output (None if implicit), and after the pipe.

    Raises:
        ExpressionError: it is no conv_einsum string.
    """
    if not isinstance(string, str):
        raise ExpressionError(f"the expression must be a string such as 'bsh,tsh->bth|h', not {type(string).__name__}")
    body, *pipes = string.replace(" ", "").split("|")
    inputs, *outputs = body.split("->")
    if len(pipes) > 1 or len(outputs) > 1:
        raise ExpressionError(f"{string!r} has more than one '|' or '->'")
    if pipes and not outputs:
        raise ExpressionError(f"{string!r} has a pipe, so it needs an explicit output: 'inputs->output|letters'")
    terms = [_tokens(text, f"operand {n} of {string!r}") for n, text in enumerate(inputs.split(","))]
    output = _tokens(outputs[0], f"the output of {string!r}") if outputs else None
    conv = _tokens(pipes[0].replace(",", ""), f"the pipe of {string!r}") if pipes else []
    for name, letters in (("output", output or []), ("pipe", conv)):
        twice = sorted({letter for letter in letters if letters.count(letter) > 1})
        if twice:
            raise ExpressionError(f"letter '{twice[0]}' is twice in the {name} of {string!r}")
    if _ELLIPSIS in conv:
        raise ExpressionError(f"{string!r}: '...' cannot be convolved; name its letters")
    return terms, output, conv


def _tokens(text: str, where: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"unexpected {text[at]!r} in {where}: use letters, (names) and '...'")
        tokens.append(match.group().strip("()"))
        at = match.end()
    if tokens.count(_ELLIPSIS) > 1:
        raise ExpressionError(f"'...' is twice in {where}")
    return tokens


def _term(letters: Sequence[str]) -> str:
    """A term as it is printed in messages."""
    return "".join(x if len(x) == 1 or x == _ELLIPSIS else f"({x})" for x in letters)


def _expand(n: int, letters: list[str], shape: Sequence[int]) -> list[tuple[str, int]]:
    """Letters with sizes; '...' becomes '...k' with k counted from the right."""
    missing = len(shape) - len(letters) + (_ELLIPSIS in letters)
    if missing < 0 or (missing and _ELLIPSIS not in letters):
        raise ExpressionError(
            f"operand {n} ('{_term(letters)}') has {len(letters) - (_ELLIPSIS in letters)} letters, "
            f"but the tensor has {len(shape)} dimensions {tuple(shape)}"
        )
    names: list[str] = []
    for letter in letters:
        dots = [f"{_ELLIPSIS}{k}" for k in reversed(range(missing))]
        names.extend(dots if letter == _ELLIPSIS else [letter])
    return list(zip(names, shape, strict=True))


def _output(terms: list[list[str]], output: list[str] | None, dots: list[str], string: str) -> list[str]:
    if output is None:
        counts: dict[str, int] = {}
        for letter in (letter for term in terms for letter in term if letter != _ELLIPSIS):
            counts[letter] = counts.get(letter, 0) + 1
        return dots + sorted(letter for letter, times in counts.items() if times == 1)
    if _ELLIPSIS in output and not any(_ELLIPSIS in term for term in terms):
        raise ExpressionError(f"the output of {string!r} has '...', but no operand has")
    return [name for letter in output for name in (dots if letter == _ELLIPSIS else [letter])]


def _check_conv(conv: list[str], operands: list[list[tuple[str, int]]], output: list[str], string: str) -> None:
    for letter in conv:
        holders = [n for n, operand in enumerate(operands) if any(name == letter for name, _ in operand)]
        if len(holders) < 2 or letter not in output:
            raise ExpressionError(
                f"convolution letter '{letter}' of {string!r} must be in at least two operands and in the output; "
                f"it is in operands {holders} and {'' if letter in output else 'not '}in the output"
            )
        for n in holders:
            if sum(name == letter for name, _ in operands[n]) > 1:
                raise ExpressionError(f"convolution letter '{letter}' is twice in operand {n} of {string!r}")


def _check_keys(
    geometry: _Geometry, conv: list[str], operands: list[list[tuple[str, int]]], terms: list[list[str]]
) -> None:
    for name, value in (("stride", geometry.stride), ("padding", geometry.padding), ("dilation", geometry.dilation)):
        if not isinstance(value, Mapping):
            continue
        for key in value:
            if name == "dilation" and isinstance(key, tuple) and len(key) == 2 and key[0] in range(len(operands)):
                n, letter = key[0], str(key[1]).strip("()")
                if letter in conv and any(letter == x for x, _ in operands[n]):
                    if n == _features(letter, operands):
                        raise ExpressionError(
                            f"dilation key {key!r}: operand {n} ('{_term(terms[n])}') holds the features on "
                            f"'{letter}', which have no dilation"
                        )
                    continue
            elif isinstance(key, str) and key.strip("()") in conv:
                continue
            raise ExpressionError(f"{name} key {key!r} is no convolution letter; they are {conv}")


def _features(letter: str, operands: list[list[tuple[str, int]]]) -> int:
    """The operand with the largest size on a convolution letter, the first of them."""
    sizes = {n: size for n, operand in enumerate(operands) for name, size in operand if name == letter}
    best, *others = sizes
    for n in others:
        if sizes[n] > sizes[best]:
            best = n
    return best


def _sizes(operands: list[list[tuple[str, int]]], conv: list[str], terms: list[list[str]]) -> dict[str, int]:
    """The size of every ordinary letter; sizes of 1 broadcast."""
    sizes: dict[str, tuple[int, int]] = {}
    for n, operand in enumerate(operands):
        for letter, size in operand:
            if letter in conv:
                continue
            known, holder = sizes.get(letter, (1, n))
            if known != 1 and size not in (1, known):
                raise ExpressionError(
                    f"letter '{letter}' has size {size} in operand {n} ('{_term(terms[n])}') but {known} in operand "
                    f"{holder} ('{_term(terms[holder])}'); sizes must be equal, or 1"
                )
            better = known == 1 or (isinstance(size, int) and size != 1)  # of equal sizes the one that is a number
            sizes[letter] = (size, n) if better else (known, holder)
    return {letter: size for letter, (size, _) in sizes.items()}


def _ordinary(letter: str, size: int) -> tuple[Index, ...]:
    return () if size == 1 else (_index(letter, size),)


def _index(name: str, size: Any) -> Index:
    return Index(name, hint(size), symbol(size))


def _axis(n: int, letter: str, size: int, sizes: dict[str, int], windows: dict[str, Window]) -> tuple[Index, ...]:
    if letter not in windows:
        return _ordinary(letter, size)
    window = windows[letter]
    tap = next((t.index for t in window.taps if t.index.name == f"{letter}.{n}"), None)
    return (tap or window.features,)


def _window(
    letter: str, operands: list[list[tuple[str, int]]], terms: list[list[str]], geometry: _Geometry
) -> tuple[Window, int]:
    """The window of a convolution letter, and its number of outputs."""
    features = _features(letter, operands)
    holders = {n: size for n, operand in enumerate(operands) for name, size in operand if name == letter}
    size = holders[features]
    taps = tuple(
        Tap(Index(f"{letter}.{n}", int(width)), _dilation(geometry, letter, n))
        for n, width in holders.items()
        if n != features
    )
    empty = next((t.index for t in taps if t.index.size < 1), None)
    if empty is not None or size < 1:
        raise ExpressionError(f"convolution letter '{letter}' has size 0 in an operand; sizes must be at least 1")
    stride = _positive("stride", _by_letter(geometry.stride, letter, 1), letter)
    reach = sum(tap.reach for tap in taps)
    left, right = _padding(_by_letter(geometry.padding, letter, "same"), letter, reach)
    if not isinstance(size, int) and not _holds(size, len(taps), stride, left, right, geometry):
        size = int(size)
    span = size + left + right - reach - 1
    if span < 0:
        raise ExpressionError(
            f"convolution letter '{letter}': operand {features} ('{_term(terms[features])}') has size {size} there, "
            f"{size + left + right} with padding, but the composed kernel has {reach + 1}; pad more or use a "
            f"smaller kernel"
        )
    count = span // stride + 1
    out = _index(f"{letter}.out", count)
    return Window(_index(letter, size), out, taps, stride, left, circular=geometry.circular), count


def _holds(size: Any, kernels: int, stride: int, left: int, right: int, geometry: _Geometry) -> bool:
    """Whether a window can slide over a symbolic size.

    Not where a stride would leave a remainder that is to be padded or cropped: torch's convolution, which drops it,
    pads both sides alike. A circular one must find what it repeats within the features.
    """
    if geometry.circular and not (size >= left and size >= right):
        return False
    return stride == 1 or (kernels == 1 and left == right and not geometry.circular)


def _by_letter(value: Any, letter: str, default: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    keys = {key.strip("()"): v for key, v in value.items() if isinstance(key, str)}
    return keys.get(letter, default)


def _dilation(geometry: _Geometry, letter: str, operand: int) -> int:
    value = geometry.dilation
    if isinstance(value, Mapping):
        pairs = {(k[0], str(k[1]).strip("()")): v for k, v in value.items() if isinstance(k, tuple)}
        value = pairs.get((operand, letter), _by_letter(value, letter, 1))
    return _positive("dilation", value, letter)


def _positive(name: str, value: Any, letter: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ExpressionError(f"{name} of letter '{letter}' must be an int >= 1, not {value!r}")
    return int(value.__index__())


def _padding(value: Any, letter: str, reach: int) -> tuple[int, int]:
    named = {"same": (reach // 2, reach - reach // 2), "valid": (0, 0), "full": (reach, reach)}
    if isinstance(value, str) and value in named:
        return named[value]
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(isinstance(p, bool) or not hasattr(p, "__index__") or p.__index__() < 0 for p in pair):
        raise ExpressionError(
            f"padding of letter '{letter}' must be 'same', 'valid', 'full', an int >= 0 or a pair of them, "
            f"not {value!r}"
        )
    return int(pair[0].__index__()), int(pair[1].__index__())


def _flips(
    windows: dict[str, Window], operands: list[list[tuple[str, int]]]
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    flips = []
    for n, operand in enumerate(operands):
        kernel_dims = tuple(
            dim
            for dim, (letter, size) in enumerate(operand)
            if letter in windows and size > 1 and n != _features(letter, operands)
        )
        if kernel_dims:
            flips.append((n, kernel_dims))
    return tuple(flips)
