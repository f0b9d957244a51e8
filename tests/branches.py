"""Random programs of sums and products, with values read twice and writes in place, as Python source.

A program is a few lines of torch (`v3 = F.conv2d(v1, self.w0)`), so that one which fails can be read, cut down line by
line (`shortest`) and pasted into a test. Every line is run while it is written: what torch refuses is left out.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

WRITES = {"iadd": operator.iadd, "isub": operator.isub, "imul": operator.imul, "setitem": operator.setitem}
NAMES = {"torch": torch, "F": F, **WRITES}
_LARGEST = 50.0  # of the values, and
_MOST = 3000  # their number


@dataclass(frozen=True)
class Program:
    """The body of a forward and what it reads.

    Attributes:
        lines: statements, in order.
        outputs: names of the values that are returned.
        inputs: shapes of x0, x1, ..
        weights: shape of `self.w0`, `self.w1`, .., and whether it is trained.
        last: names of 4-d inputs that are in channels last.
    """

    lines: tuple[str, ...]
    outputs: tuple[str, ...]
    inputs: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[tuple[int, ...], bool]]
    last: frozenset[str] = frozenset()

    def __str__(self) -> str:
        weights = [f"    # {n}: {s}{'' if trained else ', frozen'}" for n, (s, trained) in self.weights.items()]
        inputs = [f"    # {n}: {s}{', channels last' if n in self.last else ''}" for n, s in self.inputs.items()]
        return "\n".join([self._head(), *inputs, *weights, *(f"    {line}" for line in self._body())])

    def model(self) -> nn.Module:
        """A module with this forward, the same weights each time."""
        scope = dict(NAMES)
        exec("\n".join([self._head(), *(f"    {line}" for line in self._body())]), scope)
        made = type("Written", (nn.Module,), {"forward": scope["forward"]})()
        for name, (shape, trained) in self.weights.items():
            made.register_parameter(name, nn.Parameter(_values(name, shape), requires_grad=trained))
        return made

    def tensors(self) -> list[torch.Tensor]:
        """Values of the inputs, the same each time."""
        made = [_values(name, shape) for name, shape in self.inputs.items()]
        formats = [torch.channels_last if n in self.last else torch.contiguous_format for n in self.inputs]
        return [x.contiguous(memory_format=form) for x, form in zip(made, formats, strict=True)]

    def _head(self) -> str:
        return f"def forward(self, {', '.join(self.inputs)}):"

    def _body(self) -> list[str]:
        return [*self.lines, f"return {', '.join(self.outputs)},"]


def _values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers of an input or a weight; those of a weight keep the size of what it is multiplied with."""
    generator = torch.Generator().manual_seed(sum(ord(letter) * 31**n for n, letter in enumerate(name)))
    wide = prod(shape[1:]) if name.startswith("w") and len(shape) > 1 else 1
    return torch.randn(shape, generator=generator, dtype=torch.float64) / wide**0.5


class _Skip(Exception):
    """A line that torch refuses, or whose value is of no use."""


@dataclass
class _Writer:
    """A program in the making; `env` holds the values so far."""

    rng: random.Random
    lines: list[str] = field(default_factory=list)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: dict[str, tuple[tuple[int, ...], bool]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # values that depend on inputs
    kernels: list[str] = field(default_factory=list)  # values that depend on weights only
    env: dict[str, object] = field(default_factory=lambda: {**NAMES, "self": SimpleNamespace()})
    count: int = 0

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def input(self, shape: tuple[int, ...]) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = shape
        self.env[name] = _values(name, shape).requires_grad_() * 1
        self.names.append(name)
        return name

    def weight(self, *shape: int) -> str:
        """A parameter, new or one of this shape that is there already."""
        same = [name for name, (old, _) in self.weights.items() if old == shape]
        if same and self.chance(0.25):
            return f"self.{self.rng.choice(same)}"
        name = f"w{len(self.weights)}"
        self.weights[name] = shape, self.chance(0.75)
        setattr(self.env["self"], name, nn.Parameter(_values(name, shape), self.weights[name][1]))
        return f"self.{name}"

    def of(self, expression: str) -> torch.Tensor:
        """The value of an expression.

        Raises:
            _Skip: torch refuses it.
        """
        try:
            return eval(expression, self.env)  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise _Skip from error

    def shape(self, expression: str) -> tuple[int, ...]:
        return tuple(self.of(expression).shape)

    def let(self, expression: str, kernel: bool = False) -> str:
        """A line that gives a value a name."""
        name = f"v{self.count}"
        self.do(f"{name} = {expression}", name)
        self.count += 1
        (self.kernels if kernel else self.names).append(name)
        return name

    def do(self, line: str, name: str | None = None) -> None:
        """A line.

        Raises:
            _Skip: torch refuses it, or the value is too large, or none.
        """
        try:
            exec(line, self.env)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise _Skip from error
        value = self.env.get(name) if name else None
        if isinstance(value, torch.Tensor):
            small = 0 < value.numel() <= _MOST and value.ndim <= 5 and value.abs().max() < _LARGEST
            if not small or value.dtype != torch.float64:
                raise _Skip
        self.lines.append(line)

    def pick(self, fits: Callable[[torch.Tensor], bool] = lambda value: True) -> str:
        """A value, mostly a recent one."""
        names = [name for name in self.names if fits(self.of(name))]
        if not names:
            raise _Skip
        return self.rng.choice(names[-3:] if self.chance(0.6) else names)

    def like(self, name: str) -> str:
        """A value of the same shape as another, perhaps itself."""
        shape = self.shape(name)
        return self.pick(lambda value: tuple(value.shape) == shape)

    def number(self) -> str:
        return self.rng.choice(["0.5", "2", "-1.5", "3", "0.25", "-1", "1", "1.0", "0.3"])

    def scalar(self) -> str:
        """A number, or a tensor without dims."""
        kind = self.rng.randrange(6)
        return self.weight() if kind == 0 else f"{self.weight(3)}.mean()" if kind == 1 else self.number()

    def vector(self, x: str) -> str:
        """One number per channel (axis 1, or the last of a matrix)."""
        shape = self.shape(x)
        if len(shape) < 3 or self.chance(0.2):
            return self.weight(shape[-1]) if shape else self.weight()
        if self.chance(0.5):
            return self.weight(1, shape[1], *(1 for _ in shape[2:]))
        return f"{self.weight(shape[1])}.view({(-1, *(1 for _ in shape[2:]))})"


# Weights


def _kernel(w: _Writer, *shape: int) -> str:
    """A weight of some shape, as it is or computed from others."""
    rows, cols = shape[0], prod(shape[1:])
    kind = w.rng.randrange(18)
    rank = w.rng.randint(1, 3)
    same = [name for name in w.kernels if w.shape(name) == shape]
    if same and w.chance(0.2):
        return w.rng.choice(same)
    if kind < 8 or len(shape) < 2:
        return w.weight(*shape)
    if kind == 8:
        return w.let(f"{w.weight(*shape)} {w.rng.choice('+-')} {w.weight(*shape)}", True)
    if kind in (9, 10):
        base, a, b = w.weight(*shape), w.weight(rows, rank), w.weight(rank, cols)
        delta = w.let(f"({a} @ {b}).reshape({shape})", True)
        whole = w.let(f"{base} + {w.scalar()} * {delta}", True)
        return w.let(f"{whole} - {base}", True) if w.chance(0.3) else whole
    if kind == 11:
        letters = "abcd"[: len(shape)]
        factors = [w.weight(size, rank) for size in shape]
        string = ",".join(f"{x}r" for x in letters) + "->" + letters
        return w.let(f"torch.einsum('{string}', {', '.join(factors)})", True)
    if kind == 12:
        return w.let(f"{w.weight(rank, cols)}.t().mm({w.weight(rank, rows)}).t().reshape({shape})", True)
    if kind == 13:
        order = list(range(len(shape)))
        w.rng.shuffle(order)
        stored = [0] * len(shape)
        for place, dim in enumerate(order):
            stored[dim] = shape[place]
        return w.let(f"{w.weight(*stored)}.permute({order})", True)
    if kind == 14:
        vector = w.weight(rows, *(1 for _ in shape[1:]))
        return w.let(f"{w.weight(*shape)} * {vector}", True)
    if kind == 15:
        return w.let(f"{w.weight(*shape)} * {w.weight(*shape)}", True)
    if kind == 16:
        dim = w.rng.randrange(len(shape))
        narrow = (*shape[:dim], 1, *shape[dim + 1 :])
        return w.let(f"{w.weight(*narrow)}.expand({shape})", True)
    return w.let(f"{w.weight(*shape)} * {w.number()} + {w.number()}", True)


# Convolutions


def _is_image(value: torch.Tensor) -> bool:
    return value.ndim in (3, 4) and min(value.shape[2:]) >= 2


def _conv(w: _Writer, x: str, outs: int, kernel, stride, padding, dilation, groups, bias: bool) -> str:
    n = len(kernel)
    shape = (outs, w.shape(x)[1] // groups, *kernel)
    weight = _kernel(w, *shape)
    vector = w.weight(outs) if bias else None
    return w.let(f"F.conv{n}d({x}, {weight}, {vector}, {stride}, {padding}, {dilation}, {groups})")


def _groups(w: _Writer, ins: int, outs: int) -> int:
    return w.rng.choice([g for g in (1, 1, 1, 1, 2, 3, ins) if ins % g == 0 and outs % g == 0])


def _any_conv(w: _Writer) -> None:
    x = w.pick(_is_image)
    n = w.of(x).ndim - 2
    ins, outs = w.shape(x)[1], w.rng.randint(1, 5)
    each = lambda *values: [w.rng.choice(values) for _ in range(n)]
    _conv(w, x, outs, each(1, 2, 3), each(1, 1, 2), each(0, 1, 2), each(1, 1, 2), _groups(w, ins, outs), w.chance(0.3))


def _branch(w: _Writer, x: str, outs: int, stride: list[int], delta: list[int], bias: bool) -> str:
    """A convolution, or two in a row, whose result has a size that is given by stride and `reach - 2 * padding`."""
    kernel, dilation, padding = [], [], []
    for d in delta:
        fits = [
            (k, e) for k in (1, 2, 3, 3, 5) for e in (1, 1, 2, 3) if e * (k - 1) >= d and (e * (k - 1) - d) % 2 == 0
        ]
        k, e = w.rng.choice([(k, e) for k, e in fits if k > 1 or e == 1])
        kernel.append(k)
        dilation.append(e)
        padding.append((e * (k - 1) - d) // 2)
    ins = w.shape(x)[1]
    kind = w.rng.randrange(6)
    ones = [1 for _ in kernel]
    zeros = [0 for _ in kernel]
    if kind == 0:  # a bottleneck before
        rank = w.rng.randint(1, 3)
        x = _conv(w, x, rank, ones, 1, 0, 1, 1, w.chance(0.1))
        ins = rank
    if kind == 1:  # channels after
        mid = w.rng.randint(1, 3)
        x = _conv(w, x, mid, kernel, stride, padding, dilation, _groups(w, ins, mid), w.chance(0.2))
        return _conv(w, x, outs, ones, 1, 0, 1, _groups(w, mid, outs), bias)
    if kind == 2 and len(kernel) == 2:  # one axis after the other
        a, b = [kernel[0], 1], [1, kernel[1]]
        mid = w.rng.choice([ins, w.rng.randint(1, 3)])
        x = _conv(w, x, mid, a, [stride[0], 1], [padding[0], 0], [dilation[0], 1], _groups(w, ins, mid), False)
        last = [1, stride[1]], [0, padding[1]], [1, dilation[1]]
        return _conv(w, x, outs, b, *last, _groups(w, mid, outs), bias)
    if kind == 3:
        x = w.let(f"{x} * {w.scalar()}")
    if kind == 4 and stride == ones and delta == zeros:  # a larger stack, the border rule in between
        x = _conv(w, x, ins, kernel, stride, padding, dilation, _groups(w, ins, ins), False)
    return _conv(w, x, outs, kernel, stride, padding, dilation, _groups(w, ins, outs), bias)


def _branches(w: _Writer) -> None:
    """Several convolutions of one input, or of two, added up."""
    x = w.pick(_is_image)
    n = w.of(x).ndim - 2
    y = w.like(x) if w.chance(0.3) else x
    ins = w.shape(x)[1]
    outs = w.rng.choice([ins, ins, w.rng.randint(1, 5)])
    stride = [w.rng.choice([1, 1, 1, 2]) for _ in range(n)]
    delta = [w.rng.choice([0, 0, 0, 0, 0, 2, 1, -2]) for _ in range(n)]
    biased = w.rng.choice([0.0, 0.3, 1.0])
    parts = [
        _branch(w, w.rng.choice([x, x, y]), outs, stride, delta, w.chance(biased)) for _ in range(w.rng.randint(2, 3))
    ]
    if outs == ins and stride == [1] * n and delta == [0] * n and w.chance(0.5):
        parts.append(x)
    _add_up(w, parts)


def _rep_vgg(w: _Writer) -> None:
    """3x3, 1x1 and the identity."""
    x = w.pick(lambda value: _is_image(value) and value.shape[1] <= 6)
    n, c = w.of(x).ndim - 2, w.shape(x)[1]
    groups, bias = _groups(w, c, c), w.chance(0.5)
    parts = [
        _conv(w, x, c, [3] * n, 1, 1, 1, groups, bias),
        _conv(w, x, c, [1] * n, 1, 0, 1, groups, bias),
    ]
    _add_up(w, [*parts, x] if w.chance(0.8) else parts)


def _adapter(w: _Writer) -> None:
    """conv(x, W) + s * conv(conv(x, A), B)."""
    x = w.pick(_is_image)
    n = w.of(x).ndim - 2
    outs, rank, k = w.rng.randint(2, 5), w.rng.randint(1, 2), w.rng.choice([1, 3])
    base = _conv(w, x, outs, [k] * n, 1, k // 2, 1, 1, w.chance(0.4))
    down = _conv(w, x, rank, [k] * n, 1, k // 2, 1, 1, False)
    up = _conv(w, down, outs, [1] * n, 1, 0, 1, 1, False)
    w.let(f"{base} + {w.scalar()} * {up}" if w.chance(0.6) else f"torch.add({base}, {up}, alpha={w.number()})")


def _one_kernel(w: _Writer) -> None:
    """Two inputs under one kernel."""
    x = w.pick(_is_image)
    y = w.like(x)
    n, c = w.of(x).ndim - 2, w.shape(x)[1]
    k, outs = w.rng.choice([1, 2, 3]), w.rng.randint(1, 4)
    weight = _kernel(w, outs, c, *[k] * n)
    stride, padding = w.rng.choice([1, 1, 2]), w.rng.choice([0, 1])
    conv = lambda value: w.let(f"F.conv{n}d({value}, {weight}, None, {stride}, {padding})")
    if w.chance(0.5):
        conv(_combined(w, x, y))
    else:
        _add_up(w, [conv(x), conv(y)])


def _transposed(w: _Writer) -> None:
    x = w.pick(_is_image)
    n, c = w.of(x).ndim - 2, w.shape(x)[1]
    outs, k, stride = w.rng.randint(1, 3), w.rng.choice([2, 3]), w.rng.choice([1, 2])
    one = lambda: w.let(f"F.conv_transpose{n}d({x}, {_kernel(w, c, outs, *[k] * n)}, None, {stride}, {padding})")
    padding = w.rng.choice([0, 0, 1])
    first = one()
    if w.chance(0.6):
        _add_up(w, [first, one()])


# Sums


def _combined(w: _Writer, a: str, b: str) -> str:
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


def _add_up(w: _Writer, parts: list[str]) -> str:
    """Several values added up, in one go or one by one."""
    w.rng.shuffle(parts)
    if w.chance(0.15):
        return w.let(f"sum([{', '.join(parts)}])")
    total = parts[0]
    for part in parts[1:]:
        total = _combined(w, total, part)
    return total


def _add(w: _Writer) -> None:
    a = w.pick()
    _combined(w, a, w.like(a))


def _affine(w: _Writer) -> None:
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


def _nonlinear(w: _Writer) -> None:
    w.let(f"torch.{w.rng.choice(['relu', 'tanh'])}({w.pick()})")


def _reduce(w: _Writer) -> None:
    x = w.pick(lambda value: value.ndim >= 2)
    dim = w.rng.choice([-1, 1, 0, (1, -1), (0, 1)])
    keep = w.chance(0.6)
    small = w.let(f"{x}.{w.rng.choice(['sum', 'mean'])}({dim}, keepdim={keep}) * 0.2")
    if keep and w.chance(0.7):
        _combined(w, x, small)


# Matrices


def _is_rows(value: torch.Tensor) -> bool:
    return value.ndim in (2, 3, 4)


def _product(w: _Writer, x: str, outs: int) -> str:
    """The last axis of x, or the one before, multiplied by a matrix."""
    *lead, rows, cols = w.shape(x)
    kind = w.rng.randrange(9)
    if kind < 3:
        return w.let(f"F.linear({x}, {_kernel(w, outs, cols)}, {w.weight(outs) if w.chance(0.4) else None})")
    if kind < 5:
        return w.let(f"{x} @ {_kernel(w, cols, outs)}")
    if kind == 5:
        return w.let(f"torch.einsum('...i,io->...o', {x}, {_kernel(w, cols, outs)})")
    if kind == 6:
        return w.let(f"torch.tensordot({x}, {_kernel(w, cols, outs)}, ([-1], [0]))")
    if kind == 7:
        rank = w.rng.randint(1, 3)
        middle = w.let(f"{x} @ {_kernel(w, cols, rank)}")
        return w.let(f"{middle} @ {_kernel(w, rank, outs)}")
    rank = w.rng.randint(1, 2)
    return w.let(f"torch.einsum('...i,ir,or->...o', {x}, {w.weight(cols, rank)}, {w.weight(outs, rank)})")


def _matmuls(w: _Writer) -> None:
    """Products of one or two inputs with matrices, added up."""
    x = w.pick(_is_rows)
    y = w.like(x) if w.chance(0.4) else x
    outs = w.rng.choice([w.shape(x)[-1], w.rng.randint(1, 5)])
    parts = [_product(w, w.rng.choice([x, x, y]), outs) for _ in range(w.rng.randint(1, 3))]
    if outs == w.shape(x)[-1] and w.chance(0.4):
        parts.append(x)
    _add_up(w, parts)


def _shared_matrix(w: _Writer) -> None:
    x = w.pick(_is_rows)
    y = w.like(x)
    weight = _kernel(w, w.shape(x)[-1], w.rng.randint(1, 5))
    if w.chance(0.5):
        w.let(f"{_combined(w, x, y)} @ {weight}")
    else:
        _add_up(w, [w.let(f"{x} @ {weight}"), w.let(f"{y} @ {weight}")])


def _addmm(w: _Writer) -> None:
    x = w.pick(lambda value: value.ndim in (2, 3))
    *lead, rows, cols = w.shape(x)
    outs = w.rng.randint(1, 4)
    scales = w.rng.choice(["", f", beta={w.number()}", f", alpha={w.number()}", f", beta=0.5, alpha={w.number()}"])
    if lead:
        weight = _kernel(w, lead[0], cols, outs)
        w.let(f"torch.baddbmm({_kernel(w, *w.rng.choice([(1, outs), (lead[0], 1, outs)]))}, {x}, {weight}{scales})")
    else:
        w.let(f"torch.addmm({w.weight(outs)}, {x}, {_kernel(w, cols, outs)}{scales})")


def _between(w: _Writer) -> None:
    """Products of values with each other."""
    x = w.pick(lambda value: value.ndim in (2, 3, 4))
    y = w.like(x)
    spellings = ["{x} @ {y}.mT", "{x} * {y}", "{x}.mT @ {y}", "({x} @ {y}.mT) @ {x}", "torch.addcmul({x}, {x}, {y})"]
    w.let(f"({w.rng.choice(spellings).format(x=x, y=y)}) * 0.2")


# Views and writes in place


def _view_of(w: _Writer, x: str) -> str:
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


def _view(w: _Writer) -> None:
    w.let(_view_of(w, w.pick()))


def _back(w: _Writer) -> None:
    """A value that has no image's shape is made one, or the other way round."""
    x = w.pick(lambda value: value.numel() % 4 == 0 or value.ndim in (3, 4))
    shape = w.shape(x)
    if len(shape) == 4:
        w.let(f"{x}.flatten(2).transpose(1, 2)" if w.chance(0.5) else f"{x}.permute(0, 2, 3, 1)")
    elif len(shape) == 3:
        w.let(f"{x}.transpose(1, 2)" if w.chance(0.5) else f"{x}.unsqueeze(-1).expand(-1, -1, -1, 3)")
    else:
        w.let(f"{x}.reshape(2, 2, -1)")


def _join(w: _Writer) -> None:
    x = w.pick(lambda value: value.ndim >= 2)
    w.let(f"torch.cat([{x}, {w.like(x)}], 1)")


def _write(w: _Writer) -> None:
    """A write in place, to a value, an input or a view of one; its result may get a name of its own."""
    kept = {value.untyped_storage().data_ptr() for value in vars(w.env["self"]).values()}
    target = w.pick(lambda value: value.untyped_storage().data_ptr() not in kept)
    if target in w.inputs and w.chance(0.5):
        raise _Skip
    if w.chance(0.3):
        target = _view_of(w, target)
        if target.endswith("detach()") and w.chance(0.8):
            raise _Skip
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
        raise _Skip


def _border(w: _Writer) -> None:
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
        _conv(w, target, w.rng.randint(1, 4), [w.rng.choice([1, 3])] * n, 1, w.rng.choice([0, 0, 0, 1]), 1, 1, False)
    elif w.chance(0.7):
        w.let(f"{target} @ {_kernel(w, w.shape(target)[-1], w.rng.randint(1, 4))}")


_IMAGES = [
    *(_any_conv, _branches, _branches, _branches, _branches, _rep_vgg, _rep_vgg, _adapter, _adapter),
    *(_one_kernel, _one_kernel, _transposed),
]
_ROWS = [_matmuls, _matmuls, _matmuls, _matmuls, _shared_matrix, _shared_matrix, _addmm, _addmm, _between]
_OTHERS = [_add, _add, _add, _affine, _affine, _affine, _nonlinear, _reduce, _view, _view, _back, _join]
_WRITES = [_write, _write, _border]


def program(seed: int) -> Program:
    """A random program of 2 to 6 steps, each of which is one line or a few."""
    rng = random.Random(seed)
    w = _Writer(rng)
    image = rng.random() < 0.55
    batch = rng.choice([2, 2, 3, 1])
    if image:
        shape = (batch, rng.randint(1, 5), *(rng.randint(3, 7) for _ in range(rng.choice([1, 2, 2]))))
    else:
        shape = (*((batch,) if rng.random() < 0.5 else ()), rng.randint(2, 5), rng.randint(2, 6))
    for _ in range(rng.choice([1, 1, 2])):
        w.input(shape)
    steps = [*(_IMAGES if image else _ROWS) * 2, *_OTHERS, *_WRITES * rng.choice([0, 1, 2, 3])]
    if rng.random() < 0.2:
        steps += [*_IMAGES, *_ROWS]
    goal = rng.randint(2, 6)
    made = 0
    for _ in range(4 * goal):
        if made == goal or len(w.lines) > 24:
            break
        before = len(w.lines)
        try:
            rng.choice(steps)(w)
        except _Skip:
            pass
        made += len(w.lines) > before
    if rng.random() < 0.3:
        last = w.names[-1]
        same = [name for name in w.names if w.shape(name) == w.shape(last)]
        if len(same) > 1:
            try:
                _add_up(w, rng.sample(same, min(len(same), 3)))
            except _Skip:
                pass
    share = rng.choice([0.0, 0.1, 0.3])
    outputs = [name for name in w.names[:-1] if rng.random() < share][:4]
    outputs.append(w.names[-1])
    last = frozenset(n for n, s in w.inputs.items() if len(s) == 4 and rng.random() < 0.15)
    whole = Program(tuple(w.lines), tuple(outputs), w.inputs, w.weights, last)
    return whole if rng.random() < 0.1 else tidy(whole)


_IN_PLACE = re.compile(r"\w_\(|\bi(add|sub|mul)\(|\bsetitem\(")


def tidy(whole: Program) -> Program:
    """The program without lines whose values nothing reads, and without inputs and weights that it does not name."""
    wanted = set(whole.outputs)
    kept: list[str] = []
    for line in reversed(whole.lines):
        name = line.partition(" = ")[0]
        if name in wanted or _IN_PLACE.search(line):
            kept.append(line)
            wanted.update(re.findall(r"\w+", line))
    lines = tuple(reversed(kept))
    inputs = {name: shape for name, shape in whole.inputs.items() if name in wanted}
    weights = {name: entry for name, entry in whole.weights.items() if name in wanted}
    return replace(whole, lines=lines, inputs=inputs or whole.inputs, weights=weights)


def shortest(whole: Program, fails: Callable[[Program], bool]) -> Program:
    """A program that still fails, from which no line and no output can be left out; lines may become inputs."""
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(whole):
            if fails(smaller):
                whole, progress = smaller, True
                break
    return whole


def _smaller(whole: Program):
    """Programs with one thing less."""
    if len(whole.outputs) > 1:
        for n in range(len(whole.outputs)):
            yield tidy(replace(whole, outputs=(*whole.outputs[:n], *whole.outputs[n + 1 :])))
    shapes = shapes_of(whole)
    for n, line in enumerate(whole.lines):
        name, assigned, expression = line.partition(" = ")
        rest = (*whole.lines[:n], *whole.lines[n + 1 :])
        if not assigned:
            yield tidy(replace(whole, lines=rest))
            continue
        if name not in shapes:
            continue
        if name not in whole.outputs:  # another value in its place
            others = [x for x in re.findall(r"\b[vx]\d+\b", expression) if shapes.get(x) == shapes[name]]
            for other in dict.fromkeys(others):
                swapped = tuple(re.sub(rf"\b{name}\b", other, text) for text in rest)
                yield tidy(replace(whole, lines=swapped))
        fresh = f"x{1 + max(int(x[1:]) for x in whole.inputs)}"
        swapped = tuple(re.sub(rf"\b{name}\b", fresh, text) for text in rest)
        outputs = tuple(fresh if x == name else x for x in whole.outputs)
        smaller = tidy(replace(whole, lines=swapped, outputs=outputs, inputs={**whole.inputs, fresh: shapes[name]}))
        if len(smaller.lines) < len(whole.lines):
            yield smaller
    if whole.last:
        yield replace(whole, last=frozenset())
    for name in whole.weights:
        shape, trained = whole.weights[name]
        if trained:
            yield replace(whole, weights={**whole.weights, name: (shape, False)})


def shapes_of(whole: Program) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs and of what every line gives a name."""
    scope: dict[str, object] = {**NAMES, "self": whole.model()}
    scope.update(zip(whole.inputs, [x.requires_grad_() * 1 for x in whole.tensors()], strict=True))
    for line in whole.lines:
        try:
            exec(line, scope)
        except (RuntimeError, IndexError, ValueError, TypeError, NameError):
            break
    return {name: tuple(value.shape) for name, value in scope.items() if isinstance(value, torch.Tensor)}
