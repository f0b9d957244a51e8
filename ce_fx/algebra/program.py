"""A sum that is evaluated through others: a straight line of steps, each of which defines a leaf for the next.

Factoring `x.A + x.B` gives two steps, `z = A + B` and `x.z`. Steps are expressions like the whole, and two kinds that
only a factored sum needs: the identity that stands for "x itself", and a kernel placed among zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ce_fx.algebra.expression import Expression


@dataclass(frozen=True)
class Eye:
    """The identity matrix of a size."""

    size: int


@dataclass(frozen=True)
class Place:
    """A leaf among zeros, per dim: `y[.., offset + step * j, ..] = leaf[.., j, ..]`.

    Attributes:
        leaf: which one.
        shape: what it is reshaped to first.
        sizes, steps, offsets: of the result, by dim.
    """

    leaf: int
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    offsets: tuple[int, ...]


Step: TypeAlias = "Expression | Eye | Place"

Recipe: TypeAlias = "tuple[int | Group, ...]"
"""How a sum is evaluated: for each part the number of a product that stands alone, or a group."""


@dataclass(frozen=True)
class Group:
    """Products that are evaluated as `core x (sum of what is left of each)`.

    Attributes:
        core: leaves that all of them hold.
        members: numbers of the products.
        inner: how the sum of what is left is evaluated.
    """

    core: tuple[int, ...]
    members: tuple[int, ...]
    inner: Recipe


@dataclass(frozen=True)
class Program:
    """Steps in order; step `n` defines leaf `leaves + n` and reads leaves before it; the last is the result."""

    leaves: int
    steps: tuple[Step, ...]
    recipe: Recipe = field(default=(), compare=False)

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The steps that are sums of products."""
        return tuple(step for step in self.steps if isinstance(step, Expression))


def sources(step: Step) -> tuple[int, ...]:
    """The leaves that a step reads."""
    if isinstance(step, Eye):
        return ()
    if isinstance(step, Place):
        return (step.leaf,)
    return tuple(dict.fromkeys(factor.leaf for term in step.terms for factor in term.factors))
