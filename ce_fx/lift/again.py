"""Values with several users: a region that computes one again, for itself, instead of reading it.

What others read too has to be there for them, so it ends a region. But `y = h.B` with `h = x.A` costs less as `x.(A.B)`
where A widens x a lot, whoever else reads h. Such a region is offered beside the one that reads h; which is better is
for the prices to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from torch.fx import Node

from ce_fx.lift.refusal import Refusal
from ce_fx.lift.region import Region, most_in_one_product, with_leaves

Lift: TypeAlias = Callable[[Node, Sequence[Node]], "Region | Refusal"]
"""`lift(output, nodes)`: some nodes, in graph order, as one region."""
Changed: TypeAlias = Callable[[Sequence[Node], Sequence[Node]], "Refusal | None"]
"""`changed(leaves, nodes)`: why what some nodes read is not what it was before them."""


def computing_again(
    regions: Sequence[Region], order: Callable[[Node], int], lift: Lift, changed: Changed
) -> dict[Node, tuple[Region, ...]]:
    """For the result of a region, regions in its place that compute again what it reads of others.

    Args:
        regions: those of a graph.
        order: the place of a node in the graph.
        lift: reads some nodes as one region.
        changed: a value that was written to after it was computed is not computed again.

    Returns:
        Result of a region -> regions in its place: one for each such value, and one for all; none where there are none.
    """
    of = {region.output: region for region in regions}
    found = {region.output: tuple(_wider(region, of, order, lift, changed)) for region in regions}
    return {output: wider for output, wider in found.items() if wider}


def _wider(
    region: Region, of: dict[Node, Region], order: Callable[[Node], int], lift: Lift, changed: Changed
) -> Iterator[Region]:
    """Regions that compute one of the values again, and all of them."""
    if region.precision is not None:  # what is computed again would be rounded in another place
        return
    given = [leaf for leaf in region.leaves if leaf in of and _multiplied(region, leaf) and _multiplies(of[leaf])]
    read = [of[leaf] for leaf in given if changed((leaf,), (leaf, *region.nodes)) is None]
    for again in [*([one] for one in read), *([read] if len(read) > 1 else [])]:
        nodes = sorted({n for one in (region, *again) for n in one.nodes}, key=order)
        wide = lift(region.output, nodes)
        if isinstance(wide, Region) and not wide.partial:
            outputs = {one.output for one in again}
            inside = [n for n in nodes if n not in region.nodes]
            yield _in_place(region, wide, [n for n in inside if n in outputs], inside)


def _multiplies(region: Region) -> bool:
    return any(len(term.factors) > 1 for term in region.expression.terms)


def _multiplied(region: Region, leaf: Node) -> bool:
    """Whether a leaf is multiplied with others, and not with itself."""
    number = region.leaves.index(leaf)
    held = [term for term in region.expression.terms if any(factor.leaf == number for factor in term.factors)]
    return most_in_one_product(region, leaf) == 1 and any(len(term.factors) > 1 for term in held)


def _in_place(region: Region, wide: Region, outputs: Sequence[Node], again: Sequence[Node]) -> Region:
    """A wide region in the place of a narrow one: it is handed the values, too, that it computes again."""
    given = len(wide.leaves)
    table = {n: n if n < given else n + len(outputs) for n in range(given + len(wide.derived))}
    derived = tuple(replace(one, sources=tuple(table[n] for n in one.sources)) for one in wide.derived)
    carriers = tuple(region.carriers[region.leaves.index(output)] for output in outputs)
    return replace(
        region,
        leaves=(*wide.leaves, *outputs),
        carriers=(*wide.carriers, *carriers),
        lifted=with_leaves(wide.lifted, table),
        expression=with_leaves(wide.expression, table),
        derived=derived,
        parts=(),
        again=tuple(again),
    )
