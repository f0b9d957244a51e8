"""One product of tensors and the order in which it is evaluated, as plain data: what plans and drawings are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ce_fx.algebra import Axes, Index, Term, flat
from ce_fx.algebra.printer import name_indices, to_string
from ce_fx.plan.kinds import kind_of
from ce_fx.plan.path_info import path_info
from ce_fx.plan.plan import Plan
from ce_fx.plan.tree import splits_of, step_of


@dataclass(frozen=True)
class Operand:
    """A tensor of a product.

    Attributes:
        name: the path of a parameter, the name of an input, the layer that made a value, or an earlier step.
        letters: its indices as they print, in order.
        sizes: their sizes.
        weight: it depends on weights only.
    """

    name: str
    letters: tuple[str, ...]
    sizes: tuple[int, ...]
    weight: bool = False


@dataclass(frozen=True)
class PlannedStep:
    """One pairwise step.

    Attributes:
        string: the step alone, as a string; its `|` names the convolution axes on which both sides have a part.
        left, right: what is joined: an operand by its number; step n by the number of operands plus n, from 0.
        flops: multiply-adds counted as 2, one forward.
        elements: of the result.
        way: how it runs: "mm", "conv", "mul", ..
        weights_only: no activation takes part.
    """

    string: str
    left: int
    right: int
    flops: int
    elements: int
    way: str
    weights_only: bool = False


@dataclass(frozen=True)
class Product:
    """One product of tensors.

    Attributes:
        expression: its conv_einsum string.
        operands: the tensors, in the order of the string.
        output: the letters of the result.
        slid: those of them that are convolved.
        steps: the order of evaluation; none where it is as lifted, or there is one operand.
        dense: multiply-adds counted as 2 of the last step if all weights were merged into one dense tensor first; None
            where that is no choice.
    """

    expression: str
    operands: tuple[Operand, ...]
    output: tuple[str, ...]
    slid: tuple[str, ...] = ()
    steps: tuple[PlannedStep, ...] = ()
    dense: int | None = None

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The distinct sizes of each letter: two for a convolution axis, of the features and of the kernel."""
        found: dict[str, dict[int, None]] = {}
        for operand in self.operands:
            for letter, size in zip(operand.letters, operand.sizes, strict=True):
                found.setdefault(letter, {})[size] = None
        return {letter: tuple(sizes) for letter, sizes in found.items()}

    @property
    def flops(self) -> int:
        """Multiply-adds counted as 2 of all steps, one forward."""
        return sum(step.flops for step in self.steps)


def lifted(term: Term, output: Axes, names: Sequence[str], weights: Sequence[bool]) -> Product:
    """A product as it was found in the graph, in no order.

    Args:
        term: its factors and windows.
        output: the axes of the result.
        names: of the leaves, by their numbers.
        weights: whether a leaf depends on weights only.
    """
    letters = name_indices(term, output)
    return Product(
        to_string(term, output),
        tuple(_operand(factor.axes, letters, names[factor.leaf], weights[factor.leaf]) for factor in term.factors),
        tuple(letters[index] for index in flat(output)),
        tuple(dict.fromkeys(letters[window.features] for window in term.windows)),
    )


def planned(plan: Plan, names: Sequence[str], weights: Sequence[bool]) -> Product:
    """A product in the order of a plan. The arguments are those of `lifted`."""
    network = plan.network
    found = lifted(network.term, network.output, names, weights)
    numbers = {1 << n: n for n in range(network.n)}
    steps = []
    for row, (left, right) in zip(path_info(plan).steps, splits_of(plan.tree), strict=False):
        both = left | right
        steps.append(
            PlannedStep(
                row.string,
                numbers[left],
                numbers[right],
                2 * row.flops,
                row.size,
                plan.ways.get(both) or kind_of(step_of(network, left, right), network),
                all(operand.weight for n, operand in enumerate(found.operands) if both >> n & 1),
            )
        )
        numbers[both] = network.n + len(steps) - 1
    busy = [n for n, operand in enumerate(found.operands) if not operand.weight]
    dense = None
    if len(busy) == 1 and network.n > 2:
        features = 1 << busy[0]
        dense = 2 * network.flops(features, network.everything & ~features)
    return Product(found.expression, found.operands, found.output, found.slid, tuple(steps), dense)


def _operand(axes: Axes, letters: dict[Index, str], name: str, weight: bool) -> Operand:
    indices = flat(axes)
    return Operand(name, tuple(letters[i] for i in indices), tuple(int(i.size) for i in indices), weight)
