"""Reshapes as algebra: refine axes to a common split, and regroup.

All sizes are row-major. A refinement is a table from an index to the tuple of indices that replaces it, to be applied
with `substitute` wherever the index occurs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ce_fx.algebra.expression import substitute_axis
from ce_fx.algebra.index import Axes, Axis, Index, axis_size, flat
from ce_fx.sizes import factors

Table: TypeAlias = dict[Index, Axis]
Fresh: TypeAlias = Callable[[str, int], Index]
"""Makes a new index from a name to resemble and a size."""


def regroup(axes: Axes, shape: Sequence[int | str], fresh: Fresh) -> tuple[Table, Axes] | str:
    """Read the same elements, row-major, under another shape.

    Identity: `x.reshape(shape)[j] = x[i]` where `i` and `j` have the same row-major rank. It needs no data movement in
    the algebra if every boundary between two new axes falls on a boundary between indices, or inside one whose size it
    divides.

    Args:
        axes: the axes to read.
        shape: the new sizes: an int, or the name of a symbolic size, perhaps the product of those of several indices.
        fresh: makes the indices of a split.

    Returns:
        The table of splits and the new axes (in split indices), or a sentence that says why there is none.
    """
    table: Table = {}
    rest = [index for index in flat(axes) if index.size != 1 or index.symbol]
    repeated = {index for index in rest if rest.count(index) > 1}
    new_axes: list[Axis] = []
    for size in shape:
        axis: list[Index] = []
        need, wanted = (size, Counter[str]()) if isinstance(size, int) else factors(size)
        while need > 1 or wanted:
            if not rest:
                return f"shape {tuple(shape)} has more elements than the tensor"
            index = rest.pop(0)
            times, symbols = factors(index.symbol) if index.symbol else (index.size, Counter[str]())
            if times and need % times == 0 and symbols <= wanted:
                axis.append(index)
                need, wanted = need // times, wanted - symbols
                continue
            if index.symbol or wanted:
                return f"the symbolic size {size if wanted else index.symbol} is merged with another or split"
            if index.size % need or index in repeated:
                return f"an axis of size {index.size} is split across a boundary of size {need}"
            head, tail = fresh(index.name, need), fresh(index.name, index.size // need)
            _split(table, index, (head, tail))
            axis.append(head)
            rest.insert(0, tail)
            need = 1
        if need == 0:
            return "the tensor has no elements"
        new_axes.append(tuple(axis))
    if rest:
        return f"shape {tuple(shape)} has fewer elements than the tensor"
    return table, tuple(new_axes)


def unify(left: Axis, right: Axis, fresh: Fresh) -> tuple[Table, Table, Axis] | str:
    """Refine two axes of equal size to one common axis.

    Returns:
        The table for the left's indices, the table for the right's (which ends in the left's indices, or common new
        ones), and the common axis; or a sentence that says why there is none.
    """
    left_table: Table = {}
    right_table: Table = {}
    a, b = _nontrivial(left), _nontrivial(right)
    ones: Table = {index: () for index in right if index not in b}
    common: list[Index] = []
    if len(set(a)) != len(a) or len(set(b)) != len(b):
        return "an axis holds an index twice"
    while a and b:
        i, j = a.pop(0), b.pop(0)
        if i.symbol or j.symbol:
            if i.symbol != j.symbol:
                return f"the sizes {i.symbol or i.size} and {j.symbol or j.size} are not known to be equal"
            _split(right_table, j, (i,))
            common.append(i)
        elif i.size == j.size:
            _split(right_table, j, (i,))
            common.append(i)
        elif i.size > j.size:
            if i.size % j.size:
                return f"sizes {i.size} and {j.size} have no common split"
            head, tail = fresh(i.name, j.size), fresh(i.name, i.size // j.size)
            _split(left_table, i, (head, tail))
            _split(right_table, j, (head,))
            common.append(head)
            a.insert(0, tail)
        else:
            if j.size % i.size:
                return f"sizes {i.size} and {j.size} have no common split"
            tail = fresh(j.name, j.size // i.size)
            _split(right_table, j, (i, tail))
            common.append(i)
            b.insert(0, tail)
    if a or b:
        return f"the axes have {axis_size(left)} and {axis_size(right)} positions"
    return left_table, {**right_table, **ones}, tuple(common)


def _nontrivial(axis: Axis) -> list[Index]:
    return [index for index in axis if index.size != 1 or index.symbol]


def _split(table: Table, index: Index, parts: Axis) -> None:
    """Record that an index is replaced by parts, also where it stands in an earlier replacement."""
    for key, value in table.items():
        if index in value:
            table[key] = substitute_axis(value, {index: parts})
            return
    table[index] = parts
