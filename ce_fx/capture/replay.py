"""The reading of a graph from what its ops were read as before: candidates of a region share most of their steps.

A trace takes a millisecond a node, and a region has dozens of candidates. What an op of torch is in ATen ops depends on
its constants and on the shapes, strides, dtypes and devices of its tensors; it is traced once and remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ce_fx.capture.blank import blank
from ce_fx.capture.reading import Reading, ambient, note_gradients, read, written

_MOST = 20_000
"""Ops that are remembered; then all are forgotten."""

_FEW = 3
"""Unknown ops that are traced one by one; where there are more, the graph is read as a whole."""


@dataclass(frozen=True)
class _In:
    """The tensor argument of a number, in the order in which an op has them."""

    number: int


@dataclass(frozen=True)
class _Op:
    """The ATen op of a number."""

    number: int


@dataclass(frozen=True)
class _Step:
    """One ATen op.

    Attributes:
        target: the overload.
        args, kwargs: with `_In` and `_Op` in place of nodes.
        value: a fake value like the one it gives.
        memory: whose memory its result is: an argument's, an earlier op's or its own.
    """

    target: Any
    args: Any
    kwargs: Any
    value: Any
    memory: _In | _Op


@dataclass(frozen=True)
class _Template:
    """What one op of torch is: its ATen ops, what it gives in place of each tensor, and fake values of that."""

    steps: tuple[_Step, ...]
    carrier: Any
    fake: Any


_TEMPLATES: dict[object, _Template | None] = {}


def replayed(gm: GraphModule, inputs: Sequence[Tensor]) -> Reading:
    """As `read`, for a graph of torch functions that writes to nothing.

    The fake values of its nodes tell shapes, strides, dtypes and devices; which share memory is told by
    `meta["memory"]` of the ATen nodes. What cannot be replayed is read.

    Args:
        gm: the graph.
        inputs: fake tensors, one for each placeholder.
    """
    reading = Reading(graph=Graph())
    given = iter(inputs)
    state, unknown = ambient(), 0
    for node in gm.graph.nodes:
        if node.op == "output":
            break
        reading.states[node] = state
        if node.op == "placeholder":
            fake = next(given)
            reading.fakes[node] = fake
            reading.values[node] = _new(reading.graph, "placeholder", str(node.target), (), {}, fake, object())
            continue
        key = _key(node, reading.fakes)
        if key is not None and key not in _TEMPLATES and unknown < _FEW:
            unknown += 1
            _remember(key, _traced(node, reading.fakes))
        template = _TEMPLATES.get(key)
        if template is None:
            return _read_whole(gm, inputs)
        _replay(node, template, reading)
    note_gradients(reading)
    return reading


def _replay(node: Node, template: _Template, reading: Reading) -> None:
    carriers = _carriers(node, reading)
    ops: list[Node] = []

    def bound(ref: Any) -> Any:
        return carriers[ref.number] if isinstance(ref, _In) else ops[ref.number] if isinstance(ref, _Op) else ref

    for step in template.steps:
        args, kwargs = pytree.tree_map(bound, (step.args, step.kwargs), is_leaf=_is_reference)
        own = step.memory == _Op(len(ops))
        memory = object() if own else bound(step.memory).meta["memory"]
        ops.append(_new(reading.graph, "call_function", step.target, args, kwargs, step.value, memory))
    reading.ops[node] = tuple(ops)
    reading.values[node] = pytree.tree_map(bound, template.carrier, is_leaf=_is_reference)
    reading.fakes[node] = template.fake


def _read_whole(gm: GraphModule, inputs: Sequence[Tensor]) -> Reading:
    """Read a graph by one trace, and remember its ops."""
    reading = read(gm, inputs)
    for node in reading.ops:
        key = _key(node, reading.fakes)
        if key is not None and key not in _TEMPLATES and _all_apart(_carriers(node, reading)):
            _remember(key, _template_of(node, reading))
    return reading


def _all_apart(carriers: Sequence[Any]) -> bool:
    """Whether an op was read of tensors that share no memory: else it is not known which one its result is of."""
    storages = [Reading.storage(each.meta["val"]) for each in carriers if isinstance(each, Node)]
    return len(set(storages)) == len(carriers)


def _remember(key: object, template: _Template | None) -> None:
    if len(_TEMPLATES) >= _MOST:
        _TEMPLATES.clear()
    _TEMPLATES[key] = template


def _key(node: Node, fakes: Mapping[Node, Any]) -> object | None:
    """All that an op's ATen ops depend on; None where that is not known."""
    if node.op not in ("call_function", "call_method") or node.target in (_enter_autocast, _exit_autocast):
        return None
    try:
        places = {each: n for n, each in enumerate(node.all_input_nodes)}
        given: Any = {each: _Tensor(places[each], fakes[each]) for each in places}
        arguments = map_arg((node.args, node.kwargs), given.__getitem__)
        key = node.op, node.target, _key_of(arguments), ambient()
        hash(key)
    except (TypeError, KeyError):  # a symbolic size, a constant without a hash, a node that could not be read
        return None
    return key


@dataclass(frozen=True)
class _Tensor:
    """What a node that an op reads gives, and its place among them: it may be read more than once."""

    place: int
    value: Any


def _key_of(arg: Any) -> object:
    """A constant or a tensor as a key.

    Raises:
        TypeError: it is, or has, a symbolic size.
    """
    if isinstance(arg, _Tensor):
        return arg.place, _key_of(arg.value)
    if isinstance(arg, Tensor):
        key = tuple(arg.shape), arg.stride(), arg.dtype, arg.device, arg.requires_grad
        if any(isinstance(size, torch.SymInt) for size in (*key[0], *key[1])):
            raise TypeError
        return key
    if isinstance(arg, (tuple, list)):
        return type(arg), tuple(map(_key_of, arg))
    if isinstance(arg, dict):
        return tuple((name, _key_of(value)) for name, value in arg.items())
    if isinstance(arg, slice):
        return slice, _key_of(arg.start), _key_of(arg.stop), _key_of(arg.step)
    if isinstance(arg, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise TypeError
    return type(arg), arg  # 1, 1.0 and True are equal


def _traced(node: Node, fakes: Mapping[Node, Any]) -> _Template | None:
    """What an op is, by a trace of it alone."""
    graph = Graph()
    copies: dict[Node, Any] = {}
    leaves: list[Tensor] = []
    for each in node.all_input_nodes:
        flat, spec = pytree.tree_flatten(fakes[each])
        copies[each] = pytree.tree_unflatten([graph.placeholder(f"x{len(leaves) + n}") for n in range(len(flat))], spec)
        leaves += flat
    copy = graph.create_node(node.op, node.target, *map_arg((node.args, node.kwargs), copies.__getitem__))
    graph.output(copy)
    return _template_of(copy, read(GraphModule(torch.nn.Module(), graph), leaves))


def _template_of(node: Node, reading: Reading) -> _Template | None:
    """What an op of a graph that was read is; None if it writes, or reads more than its arguments."""
    inputs = _carriers(node, reading)
    if node in reading.failures or not all(isinstance(each, Node) for each in inputs):
        return None
    names: dict[Node, Any] = {}
    memory: dict[object, Any] = {}
    for n, each in enumerate(inputs):
        names.setdefault(each, _In(n))
        memory.setdefault(Reading.storage(each.meta["val"]), _In(n))
    steps = []
    for n, op in enumerate(reading.ops[node]):
        if written(op) or any(each not in names for each in op.all_input_nodes):
            return None
        names[op] = _Op(n)
        storage = Reading.storage(op.meta["val"])
        place = _Op(n) if storage is None else memory.setdefault(storage, _Op(n))
        args, kwargs = map_arg((op.args, op.kwargs), names.__getitem__)
        steps.append(_Step(op.target, args, kwargs, blank(op.meta["val"]), place))
    carrier = reading.values[node]
    if any(isinstance(each, Node) and each not in names for each in pytree.tree_leaves(carrier)):
        return None
    return _Template(tuple(steps), pytree.tree_map_only(Node, names.__getitem__, carrier), blank(reading.fakes[node]))


def _carriers(node: Node, reading: Reading) -> list[Any]:
    """The ATen nodes of the tensors that a node reads, in the order of its arguments."""
    return [leaf for each in node.all_input_nodes for leaf in pytree.tree_leaves(reading.values.get(each))]


def _is_reference(value: Any) -> bool:
    return isinstance(value, _In | _Op)


def _new(graph: Graph, op: str, target: Any, args: Any, kwargs: Any, value: Any, memory: object) -> Node:
    node = graph.create_node(op, target, args, kwargs)
    node.meta.update(val=value, memory=memory)
    return node
