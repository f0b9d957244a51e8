"""Random programs as Python source: what they are, and how one that fails is cut down."""

import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import nn

WRITES = {"iadd": operator.iadd, "isub": operator.isub, "imul": operator.imul, "setitem": operator.setitem}
NAMES = {"torch": torch, "F": F, **WRITES}

DEVICE = "CE_FX_PROGRAMS_DEVICE"
"""Environment variable: where the programs run, the CPU by default."""

SOURCE = "<program>"
"""The file that a program's lines are said to come from: line `n` of it is `lines[n - 2]`."""

_IN_PLACE = re.compile(r"\w_\(|\bi(add|sub|mul)\(|\bsetitem\(")


@dataclass(frozen=True)
class Program:
    """The body of a forward and what it reads.

    Attributes:
        lines: statements, in order.
        outputs: names of the values that are returned.
        inputs: shapes of x0, x1, ..
        weights: shape of `self.w0`, `self.w1`, .., and whether it is trained; `self.b0` is a buffer.
        last: names of 4-d inputs that are in channels last.
        families: of some lines, under which family they are counted.
    """

    lines: tuple[str, ...]
    outputs: tuple[str, ...]
    inputs: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[tuple[int, ...], bool]]
    last: frozenset[str] = frozenset()
    families: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        weights = [f"    # {n}: {s}{'' if trained else ', frozen'}" for n, (s, trained) in self.weights.items()]
        inputs = [f"    # {n}: {s}{', channels last' if n in self.last else ''}" for n, s in self.inputs.items()]
        return "\n".join([self._head(), *inputs, *weights, *(f"    {line}" for line in self._body())])

    def model(self) -> nn.Module:
        """A module with this forward, the same weights each time."""
        scope = dict(NAMES)
        text = "\n".join([self._head(), *(f"    {line}" for line in self._body())])
        exec(compile(text, SOURCE, "exec"), scope)
        made = type("Written", (nn.Module,), {"forward": scope["forward"]})()
        for name, (shape, trained) in self.weights.items():
            if name.startswith("b"):
                made.register_buffer(name, values(name, shape))
            else:
                made.register_parameter(name, nn.Parameter(values(name, shape), requires_grad=trained))
        return made

    def tensors(self) -> list[torch.Tensor]:
        """Values of the inputs, the same each time."""
        made = [values(name, shape) for name, shape in self.inputs.items()]
        formats = [torch.channels_last if n in self.last else torch.contiguous_format for n in self.inputs]
        return [x.contiguous(memory_format=form) for x, form in zip(made, formats, strict=True)]

    def _head(self) -> str:
        return f"def forward(self, {', '.join(self.inputs)}):"

    def _body(self) -> list[str]:
        return [*self.lines, f"return {', '.join(self.outputs)},"]


def values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers of an input, a weight or a buffer; a weight keeps the size of what it is multiplied with."""
    generator = torch.Generator().manual_seed(sum(ord(letter) * 31**n for n, letter in enumerate(name)))
    wide = prod(shape[1:]) if name.startswith("w") and len(shape) > 1 else 1
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64) / wide**0.5
    if name.startswith("b"):
        numbers = numbers.abs() + 0.3
    return numbers.to(os.environ.get(DEVICE, "cpu"))


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
