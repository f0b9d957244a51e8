"""Writes to slices as values of their own, `y[:, :2] = v` as `y = torch.slice_scatter(y, v, ..)`, and back.

A region computes one value from others; a tensor that is written to in parts is several. Where nothing else sees the
memory, each write becomes an op that gives the next value, and what no region took in is written in place again.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ce_fx.capture.reading import Reading, State
from ce_fx.provenance import provenance

_SLICES = "ce_fx_slices"
"""Metadata of a slice_scatter: what the write was indexed with."""

_TARGET = "ce_fx_written"
"""Metadata of what was written to, so that it is known from what took its place."""


def writes_to_slices(graph: Graph) -> list[Node]:
    """The nodes that write to a part of a tensor, in order."""
    return list(graph.find_nodes(op="call_function", target=operator.setitem))


def out_of_place(graph: Graph, reading: Reading) -> bool:
    """Make writes to slices ops that give a new tensor, where nothing else sees the memory; the graph is edited.

    Returns:
        Whether anything was changed; if so the reading is that of another graph.
    """
    order = {node: n for n, node in enumerate(graph.nodes)}
    own: dict[Node, Tensor] = {}
    state: dict[Node, State] = {}
    changed = False
    for write in writes_to_slices(graph):
        target, where, value = write.args
        if not isinstance(target, Node) or not isinstance(value, Node):
            continue
        if target not in own and _own_memory(target, reading, order):
            own[target], state[target] = reading.fakes[target], reading.states[target]
        if target not in own or min(target.users, key=order.__getitem__) is not write:
            continue
        part = _one_slice(where, own[target].shape)
        if part is None or not _is_alike(reading.fakes.get(value), own[target]):
            continue
        if reading.states[write] != state[target]:  # without gradients it would cut off those of the whole tensor
            continue
        dim, start, stop = part
        shape = [stop - start if n == dim else size for n, size in enumerate(own[target].shape)]
        with graph.inserting_before(write):
            expanded = graph.call_method("expand", (value, shape))
            new = graph.call_function(torch.slice_scatter, (target, expanded, dim, start, stop))
        for user in [user for user in target.users if user not in (new, write)]:
            user.replace_input_with(target, new)
        expanded.meta = provenance(write)
        new.meta = {**provenance(write), _SLICES: where}
        new.meta.update({key: target.meta[key] for key in ("val", "example_value") if key in target.meta})
        target.meta[_TARGET] = True
        own[new], state[new] = own[target], state[target]
        order[expanded] = order[new] = order[write]
        graph.erase_node(write)
        changed = True
    return changed


def in_place_again(graph: Graph) -> None:
    """Undo `out_of_place` for the writes that are still there."""
    for node in graph.find_nodes(op="call_function", target=torch.slice_scatter):
        where = node.meta.pop(_SLICES, None)
        target, expanded = node.args[:2]
        if where is None or not target.meta.get(_TARGET):
            continue
        with graph.inserting_before(node):
            write = graph.call_function(operator.setitem, (target, where, expanded.args[0]))
        write.meta = provenance(node)
        node.replace_all_uses_with(target)
        graph.erase_node(node)
        if not expanded.users:
            graph.erase_node(expanded)


def _is_alike(value: Any, target: Tensor) -> bool:
    """Whether a value can be written without a cast, a move to another device, or dims that fall away."""
    if not isinstance(value, Tensor):
        return False
    return value.dtype == target.dtype and value.device == target.device and value.ndim <= target.ndim


def _own_memory(target: Node, reading: Reading, order: dict[Node, int]) -> bool:
    """Whether a tensor is computed here and is the first to lie in its memory."""
    fake = reading.fakes.get(target)
    if target.op not in ("call_function", "call_method", "call_module") or not isinstance(fake, Tensor):
        return False
    storage = Reading.storage(fake)
    return target not in reading.failures and not any(
        order[node] < order[target] and Reading.storage(other) == storage for node, other in reading.fakes.items()
    )


def _one_slice(where: Any, shape: torch.Size) -> tuple[int, int, int] | None:
    """dim, start, stop of an index that takes a part of one axis and all of the others; None for any other one."""
    where = where if isinstance(where, tuple) else (where,)
    if any(one is Ellipsis for one in where):
        at = where.index(Ellipsis)
        where = (*where[:at], *[slice(None)] * (len(shape) - len(where) + 1), *where[at + 1 :])
    parts = [(dim, one) for dim, one in enumerate(where) if one != slice(None)]
    if len(parts) != 1 or not isinstance(parts[0][1], slice):
        return None
    dim, part = parts[0]
    numbers = (shape[dim], *(number for number in (part.start, part.stop, part.step) if number is not None))
    if not all(isinstance(number, int) for number in numbers):
        return None
    start, stop, step = part.indices(shape[dim])
    return (dim, start, stop) if step == 1 and start < stop else None
