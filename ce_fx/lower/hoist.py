"""Split a graph in two: what depends on weights only, and the rest, which is handed those values.

A pure pass over FX graphs; when values are computed and how long they are kept is decided elsewhere (`ce_fx.fold`).
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

Source: TypeAlias = "int | str"
"""Where a weight comes from: the position of its placeholder, or the dotted name of an attribute."""

LARGEST = 2
"""A value that is kept has at most this many times the elements of its largest weight, or of its consumer's kernel."""

_SOURCE = "_dynamo_source"
"""Where Dynamo notes what a placeholder stands for; AOTAutograd asks for it."""

_MOVES = {
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze"),
    *("unsqueeze", "expand", "expand_as", "clone", "contiguous", "alias", "as_strided", "slice", "select", "narrow"),
    *(
        "constant_pad_nd",
        "pad",
        "cat",
        "stack",
        "repeat",
        "unfold",
        "unbind",
        "split",
        "chunk",
        "index",
        "flip",
        "roll",
    ),
}
"""Ops that give the elements of what they read, some of them often, and zeros."""

_PRODUCTS = {
    *("mul", "mm", "bmm", "mv", "dot", "matmul", "addmm", "addmv", "addbmm", "baddbmm", "linear", "bilinear"),
    *("einsum", "tensordot", "inner", "kron", "convolution", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding"),
}
"""ATen ops in which a weight-only operand is a kernel: it is there to meet features."""


@dataclass(frozen=True)
class Hoisted:
    """A graph in two parts.

    Attributes:
        weights_gm: a function of the sources, in order; it returns the tuple of the kept values.
        rest_gm: takes the placeholders of the graph as before, then one more for each kept value, at the end.
        sources: what `weights_gm` is called with: placeholders, then attributes.
        fakes: fake tensors like the kept values.
        bytes: memory of the kept values.
    """

    weights_gm: GraphModule
    rest_gm: GraphModule
    sources: tuple[Source, ...]
    fakes: tuple[Tensor, ...]
    bytes: int


@dataclass(frozen=True)
class Facts:
    """What is known about the nodes of a graph.

    Attributes:
        weights: placeholders and `get_attr` nodes that hold a parameter or a buffer.
        ops: own node -> the ATen nodes that it runs; a node without an entry is not moved.
        fakes: own node -> its fake value.
        written: nodes that write in place, or whose memory is written to, anywhere in the graph.
    """

    weights: Collection[Node]
    ops: Mapping[Node, tuple[Node, ...]]
    fakes: Mapping[Node, Any]
    written: Collection[Node] = ()


def hoist(gm: GraphModule, facts: Facts) -> Hoisted | None:
    """Take what depends on weights only out of a graph.

    Kept are the values that the rest of the graph or its output reads and that took some computing: a view of a weight
    is not worth a placeholder. Where such a value is too large (`LARGEST`) those of its ancestors are kept that are
    not. Left in place is what writes in place or reads memory that the graph writes to, draws random numbers, has side
    effects, runs functions that are not torch's, or comes after a change of grad mode or autocast. Calls with literal
    arguments only (`torch.eye(3)`) count as weights.

    Args:
        gm: any FX graph; it is not changed. With `torch.export`'s the parts take and return flat values.
        facts: what is known about its nodes.

    Returns:
        The parts, or None where there is nothing to keep. A kept value that the graph hands out is copied on its way,
        so that the caller may write to it.
    """
    fixed = weight_only(gm.graph, facts)
    values = _frontier(gm.graph, fixed, facts)
    if not values:
        return None
    needed = _ancestors(values)
    weights_graph, sources = _weights_graph(gm.graph, values, needed)
    rest = _rest_graph(gm.graph, values, needed, facts)
    fakes = tuple(facts.fakes[node] for node in values)
    memory = {_storage(fake): _bytes(fake) for fake in fakes}  # some are views of one tensor
    return Hoisted(GraphModule(gm, weights_graph), GraphModule(gm, rest), sources, fakes, sum(memory.values()))


def weight_only(graph: Graph, facts: Facts) -> dict[Node, int]:
    """The nodes that depend on weights only and may run before all others.

    Returns:
        Node -> elements of the largest weight that it depends on (0: on none, as `torch.eye(3)`).
    """
    fixed: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op == "output" or _changes_state(node):
            break  # what comes later runs in another state
        if node in facts.written:
            continue
        if node.op in ("placeholder", "get_attr"):
            if node in facts.weights and _storage(facts.fakes.get(node)) is not None:
                fixed[node] = _elements(facts.fakes[node])
        elif all(n in fixed for n in node.all_input_nodes) and _repeatable(node, facts):
            own = _own_weights(node) if node.op == "call_module" else []
            fixed[node] = max([*own, *(fixed[n] for n in node.all_input_nodes)], default=0)
    return fixed


def _repeatable(node: Node, facts: Facts) -> bool:
    """Whether a node gives the same value at any time, and does nothing else."""
    ops = facts.ops.get(node)
    if ops is None or node.is_impure():
        return False
    if node.op == "call_function" and not _of_torch(node.target):
        return False  # a user's function may do more than its tensors tell
    return all(_is_repeatable(op.target) for op in ops)


def _is_repeatable(op: Any) -> bool:
    if op is operator.getitem:  # of an op with several results
        return True
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten" or op._schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in op.tags


def _of_torch(target: Any) -> bool:
    module = getattr(target, "__module__", None) or "torch"
    return target is getattr or module.partition(".")[0] in ("torch", "_operator", "math")


def _changes_state(node: Node) -> bool:
    """Whether a node changes the state that later nodes run in: grad mode, autocast, functorch's levels."""
    if node.op != "call_function":
        return False
    module = getattr(node.target, "__module__", None) or ""
    name = getattr(node.target, "__name__", "")
    return (
        module.startswith(("torch._C._functorch", "torch._functorch", "torch.amp", "torch.autograd"))
        or name in ("_set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode")
        or (module == "torch._C" and name.startswith("_set"))
    )


def _own_weights(node: Node) -> list[int]:
    """Elements of the parameters and buffers of the module that a node calls."""
    module = node.graph.owning_module.get_submodule(str(node.target)) if node.graph.owning_module else None
    return [] if module is None else [t.numel() for t in (*module.parameters(), *module.buffers())]


def _frontier(graph: Graph, fixed: Mapping[Node, int], facts: Facts) -> tuple[Node, ...]:
    """The nodes whose values are kept, in graph order."""
    weights = {_storage(facts.fakes[node]) for node in fixed if node.op in ("placeholder", "get_attr")}
    chosen: set[Node] = set()
    waiting = [node for node in fixed if any(user not in fixed for user in node.users)]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        fake = facts.fakes.get(node)
        if _is_static(fake) and _storage(fake) not in weights and _fits(node, fixed, facts):
            chosen.add(node)
            continue
        more = [n for n in node.all_input_nodes if n not in seen]
        seen.update(more)
        waiting.extend(more)
    return tuple(node for node in graph.nodes if node in chosen)


def _is_static(fake: Any) -> bool:
    """Whether a value is one plain tensor without symbolic sizes."""
    if not isinstance(fake, Tensor) or fake.layout is not torch.strided:
        return False
    return all(isinstance(size, int) for size in (*fake.shape, *fake.stride(), fake.untyped_storage().nbytes()))


def _fits(node: Node, fixed: Mapping[Node, int], facts: Facts) -> bool:
    """Whether a value is small enough to be kept: by its weights, or by the kernels of what reads it."""
    sizes = [fixed[node]]
    for user in node.users:
        itself = _is_kernel_of(user, fixed, facts)
        others = [n for n in user.all_input_nodes if n in fixed and (n is not node or itself)]
        sizes += [_own_elements(n, facts) for n in others if isinstance(facts.fakes[n], Tensor)]
    fake = facts.fakes[node]
    elements: int = LARGEST * max(sizes)
    return _bytes(fake) <= elements * int(fake.element_size())


def _own_elements(node: Node, facts: Facts) -> int:
    """Elements of a value, without those that only repeat, or pad, what it is made of.

    A kernel that is spread to a matrix over positions is the kernel still.
    """
    while facts.ops.get(node) and all(_moves(op) for op in facts.ops[node]) and node.all_input_nodes:
        node = max(node.all_input_nodes, key=lambda n: _elements(facts.fakes[n]))
    return _elements(facts.fakes[node])


def _is_kernel_of(user: Node, fixed: Mapping[Node, int], facts: Facts) -> bool:
    """Whether a user multiplies features with a value, or only moves its elements for one that does."""
    if user not in fixed:
        return _is_product(user, facts)
    moves = bool(facts.ops.get(user)) and all(_moves(op) for op in facts.ops[user])
    return moves and any(_is_kernel_of(n, fixed, facts) for n in user.users)


def _moves(op: Node) -> bool:
    """Whether an ATen node only moves elements."""
    return op.target is operator.getitem or getattr(op.target, "_opname", None) in _MOVES


def _is_product(node: Node, facts: Facts) -> bool:
    return any(getattr(op.target, "_opname", None) in _PRODUCTS for op in facts.ops.get(node, ()))


def _ancestors(values: Iterable[Node]) -> set[Node]:
    """Some nodes and all that they are made from."""
    found: set[Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _weights_graph(graph: Graph, values: Iterable[Node], needed: Collection[Node]) -> tuple[Graph, tuple[Source, ...]]:
    """The values as a function of the weights that they need."""
    positions = {node: n for n, node in enumerate(graph.find_nodes(op="placeholder"))}
    attributes = [node for node in graph.nodes if node.op == "get_attr"]
    new = Graph()
    inputs: dict[Source, Node] = {}  # one for all `get_attr` nodes of a name; whoever calls looks the attribute up
    copies: dict[Node, Node] = {}
    for node in [n for n in (*positions, *attributes) if n in needed]:
        source = positions[node] if node in positions else str(node.target)
        if source not in inputs:
            inputs[source] = new.placeholder(node.name)
            inputs[source].meta = dict(node.meta)
        copies[node] = inputs[source]
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = new.node_copy(node, copies.__getitem__)
    new.output(tuple(copies[node] for node in values))
    return new, tuple(inputs)


def _rest_graph(graph: Graph, values: Collection[Node], needed: Collection[Node], facts: Facts) -> Graph:
    """The graph with placeholders in place of the values, without the steps that only they needed."""
    new = Graph()
    copies: dict[Node, Node] = {}
    output = new.graph_copy(graph, copies, return_output_node=True)
    if output is not None:
        result, old = output  # type: ignore[misc]
        new.output(result).meta = dict(old.meta)
    new._codegen = CodeGen()
    for node in graph.find_nodes(op="placeholder"):
        if hasattr(node, _SOURCE):
            setattr(copies[node], _SOURCE, getattr(node, _SOURCE))
    handed_out = {_storage(facts.fakes.get(n)) for end in graph.find_nodes(op="output") for n in end.all_input_nodes}
    _give(new, [(copies[node], facts.fakes[node], _storage(facts.fakes[node]) in handed_out) for node in values])
    for node in reversed(graph.nodes):
        if node in needed and node.op != "placeholder" and not copies[node].users:
            new.erase_node(copies[node])
    new.lint()
    return new


def _give(graph: Graph, values: Iterable[tuple[Node, Any, bool]]) -> None:
    """Put a new placeholder, after the others, in place of each node: (node, its fake, copy it first)."""
    last = next(reversed(graph.find_nodes(op="placeholder")), None)
    first = last.next if last is not None else next(iter(graph.nodes))
    given = []
    for node, fake, handed_out in values:
        with graph.inserting_before(first):
            new = graph.placeholder(f"folded_{node.name}")
        keys = [key for key in ("example_value", "val") if key in node.meta] or ["val"]
        new.meta = dict.fromkeys(keys, fake)
        setattr(new, _SOURCE, None)  # no guard speaks of it
        given.append((node, new, handed_out))
    for node, new, handed_out in given:
        if handed_out:
            with graph.inserting_before(first):
                copy = graph.call_function(torch.clone, (new,))
            copy.meta = dict(node.meta)
            new = copy
        node.replace_all_uses_with(new)


def _storage(fake: Any) -> object:
    strided = isinstance(fake, Tensor) and fake.layout is torch.strided
    return fake.untyped_storage()._cdata if strided else None


def _elements(fake: Tensor) -> int:
    return prod(size for size in fake.shape if isinstance(size, int))


def _bytes(fake: Tensor) -> int:
    return int(fake.untyped_storage().nbytes())
