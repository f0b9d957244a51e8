"""Regions: stretches of a graph that are one multilinear expression, and how one is read as a part of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.fx import Node

from ce_fx.algebra import Expression
from ce_fx.algebra.derived import Derived
from ce_fx.lift.refusal import Refusal


@dataclass(frozen=True)
class Region:
    """A stretch of the graph that is one expression.

    Attributes:
        output: the own node whose value the region computes.
        nodes: the own nodes of the region in graph order; `output` is the last.
        ops: their ATen nodes, in order.
        leaves: leaf `n` of the expression is the value of own node `leaves[n]`.
        carriers: their ATen nodes: an own node may be another value after it was written to.
        lifted: what the region computes, as a region that absorbs this one continues.
        expression: the same with slices and concatenations resolved; these may need further derived leaves.
        partial: something could not be resolved, so this is no region unless another absorbs it.
        precision: the dtype to which autocast casts the operands of its products; None without autocast.
        derived: leaves `len(leaves)` and on, which are computed from others.
        border: why the region could not grow into the operands it stops at, or None where it simply begins.
        parts: the regions that it grew from, each of which could be replaced by itself.
        again: nodes outside it that the expression computes once more; their results are leaves that it does not hold.
    """

    output: Node
    nodes: tuple[Node, ...]
    ops: tuple[Node, ...]
    leaves: tuple[Node, ...]
    carriers: tuple[Node, ...]
    lifted: Expression
    expression: Expression
    derived: tuple[Derived, ...] = ()
    border: str | None = None
    parts: tuple[Region, ...] = ()
    partial: bool = False
    precision: torch.dtype | None = None
    again: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Regions:
    """What was found in a graph.

    Attributes:
        regions: in graph order, each as large as it could grow.
        refusals: own nodes that stay as they are although one of their ops has a rule, with the reason.
        again: for the result of a region, others in its place that compute again what it reads of others.
    """

    regions: tuple[Region, ...]
    refusals: dict[Node, Refusal]
    again: dict[Node, tuple[Region, ...]] = field(default_factory=dict)


def whole_parts(region: Region) -> Iterator[Region]:
    """The region, or where it is partial the regions that it grew from."""
    if not region.partial:
        yield region
        return
    for part in region.parts:
        yield from whole_parts(part)


def renumbered(region: Region, leaves: dict[Node | Derived, int]) -> Expression:
    """A region's expression with its leaves numbered among those of the region that absorbs it."""
    keys: list[Node | Derived] = [*region.carriers]
    for leaf in region.derived:
        keys.append(replace(leaf, sources=tuple(keys[source] for source in leaf.sources)))
    used = {*range(len(region.carriers))} | _used(region.lifted, region.derived, len(region.carriers))
    table = {n: leaves.setdefault(key, len(leaves)) for n, key in enumerate(keys) if n in used}
    return with_leaves(region.lifted, table)


def _used(expression: Expression, derived: Sequence[Derived], given: int) -> set[int]:
    """The leaves that an expression needs, and what these are derived from."""
    used = {factor.leaf for term in expression.terms for factor in term.factors}
    for n in reversed(range(len(derived))):
        if given + n in used:
            used.update(derived[n].sources)
    return used


def with_leaves(expression: Expression, table: Mapping[int, int]) -> Expression:
    """The expression with its leaves renumbered."""
    terms = tuple(
        replace(term, factors=tuple(replace(f, leaf=table[f.leaf]) for f in term.factors)) for term in expression.terms
    )
    return replace(expression, terms=terms)


def most_in_one_product(region: Region, leaf: Node) -> int:
    """How many factors of one product a leaf is."""
    number = region.leaves.index(leaf)
    return max(sum(factor.leaf == number for factor in term.factors) for term in region.expression.terms)
