"""A program in the making, and weights of any shape."""

import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from types import SimpleNamespace

import torch
from torch import nn

from tests.branches.program import NAMES, values

_LARGEST = 50.0  # of the values, and
_MOST = 3000  # their number


class Skip(Exception):
    """A line that torch refuses, or whose value is of no use."""


@dataclass
class Writer:
    """A program in the making; `env` holds the values so far."""

    rng: random.Random
    lines: list[str] = field(default_factory=list)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: dict[str, tuple[tuple[int, ...], bool]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # values that depend on inputs
    kernels: list[str] = field(default_factory=list)  # values that depend on weights only
    env: dict[str, object] = field(default_factory=lambda: {**NAMES, "self": SimpleNamespace()})
    count: int = 0
    recent: float = 0.6  # how often one of the last values is picked
    family: str | None = None  # under which lines are counted
    families: dict[str, str] = field(default_factory=dict)  # by line

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def input(self, shape: tuple[int, ...]) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = shape
        self.env[name] = values(name, shape).requires_grad_() * 1
        self.names.append(name)
        return name

    def weight(self, *shape: int) -> str:
        """A parameter, new or one of this shape that is there already."""
        same = [name for name, (old, _) in self.weights.items() if old == shape]
        if same and self.chance(0.25):
            return f"self.{self.rng.choice(same)}"
        name = f"w{len(self.weights)}"
        self.weights[name] = shape, self.chance(0.75)
        setattr(self.env["self"], name, nn.Parameter(values(name, shape), self.weights[name][1]))
        return f"self.{name}"

    def buffer(self, *shape: int) -> str:
        """Positive numbers that are no parameter, as running statistics are."""
        name = f"b{len(self.weights)}"
        self.weights[name] = shape, False
        setattr(self.env["self"], name, values(name, shape))
        return f"self.{name}"

    @contextmanager
    def around(self):
        """Lines that belong to no family."""
        family, self.family = self.family, None
        try:
            yield
        finally:
            self.family = family

    def of(self, expression: str) -> torch.Tensor:
        """The value of an expression.

        Raises:
            Skip: torch refuses it.
        """
        try:
            return eval(expression, self.env)  # type: ignore[no-any-return]
        except (RuntimeError, IndexError) as error:
            raise Skip from error

    def shape(self, expression: str) -> tuple[int, ...]:
        return tuple(self.of(expression).shape)

    def let(self, expression: str, kernel: bool = False) -> str:
        """A line that gives a value a name."""
        name = f"v{self.count}"
        self.do(f"{name} = {expression}", name)
        self.count += 1
        (self.kernels if kernel else self.names).append(name)
        return name

    def step(self, expression: str) -> str:
        """A line that gives a name to what other lines shall not read: several values, or complex ones."""
        name = f"v{self.count}"
        self.do(f"{name} = {expression}")
        self.count += 1
        return name

    def several(self, expression: str, count: int, kernel: bool = False) -> list[str]:
        """Parts of what a line gives, by names of their own."""
        whole = self.step(expression)
        return [self.let(f"{whole}[{n}]", kernel) for n in range(count)]

    def do(self, line: str, name: str | None = None) -> None:
        """A line.

        Raises:
            Skip: torch refuses it, or the value is too large, or none.
        """
        try:
            exec(line, self.env)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise Skip from error
        value = self.env.get(name) if name else None
        if isinstance(value, torch.Tensor):
            small = 0 < value.numel() <= _MOST and value.ndim <= 5 and value.abs().max() < _LARGEST
            if not small or value.dtype != torch.float64:
                raise Skip
        self.lines.append(line)
        if self.family:
            self.families[line] = self.family

    def pick(self, fits: Callable[[torch.Tensor], bool] = lambda value: True) -> str:
        """A value, mostly a recent one."""
        names = [name for name in self.names if fits(self.of(name))]
        if not names:
            raise Skip
        return self.rng.choice(names[-3:] if self.chance(self.recent) else names)

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


def weight_of(w: Writer, *shape: int) -> str:
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
