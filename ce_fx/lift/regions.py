"""Grow regions: the maximal stretches of a graph that are one multilinear expression.

A region is a set of the graph's *own* nodes that computes one value, read through their ATen ops. It is grown along
the graph's order: a node joins the regions of those of its operands that nothing else uses, if the rules find one
exact expression for the whole; otherwise it starts a region of its own, and the reason is kept. So inside a region
every value has one user, and a region is a tree of nodes that can be replaced in place.

Complexity: every node's rules run at most 2 + (number of joined operands) times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ce_fx.algebra import Expression
from ce_fx.capture.reading import Reading
from ce_fx.lift import rules as _rules  # noqa: F401  (importing it fills the table)
from ce_fx.lift.products import drop_ones
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import RULES, Operands, sizes


@dataclass(frozen=True)
class Region:
    """A stretch of the graph that is one expression.

    Attributes:
        output: the own node whose value the region computes.
        nodes: the own nodes of the region in graph order; `output` is the last.
        ops: their ATen nodes, in order.
        leaves: leaf `n` of the expression is the value of own node `leaves[n]`.
        expression: what the region computes.
        border: why the region could not grow into the operands it stops at, or None where it simply begins.
    """

    output: Node
    nodes: tuple[Node, ...]
    ops: tuple[Node, ...]
    leaves: tuple[Node, ...]
    expression: Expression
    border: str | None = None


@dataclass(frozen=True)
class Regions:
    """What was found in a graph.

    Attributes:
        regions: in graph order, each as large as it could grow.
        refusals: own nodes that stay as they are although one of their ops has a rule, with the reason.
    """

    regions: tuple[Region, ...]
    refusals: dict[Node, Refusal]


def find_regions(graph: Graph, reading: Reading) -> Regions:
    """Find the regions of a graph from its reading."""
    return _Growth(graph, reading).run()


class _Growth:
    """The state of one pass over a graph."""

    def __init__(self, graph: Graph, reading: Reading) -> None:
        self.graph = graph
        self.reading = reading
        self.owner = _owners(graph, reading)
        self.order = {node: n for n, node in enumerate(graph.nodes)}
        self.grown: dict[Node, Region] = {}
        self.absorbed: set[Node] = set()
        self.refusals: dict[Node, Refusal] = {}
        self.numbers = count()
        self.written = _writes(reading)

    def run(self) -> Regions:
        for node in self.graph.nodes:
            if not self._readable(node):
                continue
            result = self._grow(node)
            if isinstance(result, Refusal):
                if any(op.target in RULES for op in self.reading.ops.get(node, ())):
                    self.refusals[node] = result
                continue
            self.grown[node] = result
            self.absorbed.update(n for n in result.nodes if n is not node)
        whole = tuple(region for node, region in self.grown.items() if node not in self.absorbed)
        return Regions(whole, self.refusals)

    def _readable(self, node: Node) -> bool:
        """Whether a node is an op that gives one tensor."""
        if node.op not in ("call_function", "call_method", "call_module") or node in self.reading.failures:
            return False
        return isinstance(self.reading.values.get(node), Node)

    def _grow(self, node: Node) -> Region | Refusal:
        inner = [n for n in dict.fromkeys(node.all_input_nodes) if self._joinable(n, node)]
        first = result = self._attempt(node, inner)
        if isinstance(result, Refusal) and len(inner) > 1:
            for cut in inner:
                result = self._attempt(node, [n for n in inner if n is not cut])
                if isinstance(result, Region):
                    break
        if isinstance(result, Refusal) and inner:
            result = self._attempt(node, [])
        if isinstance(first, Refusal) and isinstance(result, Region):
            result = replace(result, border=first.reason)
        return result

    def _joinable(self, operand: Node, user: Node) -> bool:
        """Whether an operand's region may be absorbed: only this node uses its value, once."""
        return operand in self.grown and len(operand.users) == 1 and _uses(user, operand) == 1

    def _attempt(self, node: Node, inner: Sequence[Node]) -> Region | Refusal:
        """Lift a node with the regions of some operands joined; its other operands are leaves."""
        state = self.reading.states[node]
        if state.autocast:
            return Refusal("runs under autocast, which is not planned yet")
        if any(self.reading.states[operand] != state for operand in inner):
            return Refusal("gradients are switched on or off in between")
        leaves: dict[Node, int] = {}
        values: dict[Node, Expression] = {}
        for operand in inner:
            region = self.grown[operand]
            values[self._value(operand)] = _renumber(region, leaves, self._value)
        for op in self.reading.ops.get(node, ()):
            rule = RULES.get(op.target)
            if rule is None:
                return Refusal(f"{_name(op)} is not multilinear, or has no rule")
            refusal = _unfit(op)
            if refusal is not None:
                return refusal
            result = rule(op, Operands(values, leaves, self.numbers))
            if isinstance(result, Refusal):
                return result
            if tuple(_shape(result)) != sizes(op.meta["val"]):
                return Refusal(f"{_name(op)} was read with shape {_shape(result)}, a bug of its rule")
            values[op] = result
        value = self._value(node)
        if value not in values:
            return Refusal("it hands on a value that exists already")
        parts = [self.grown[n] for n in inner]
        nodes = sorted({node, *(n for part in parts for n in part.nodes)}, key=self.order.__getitem__)
        ops = tuple(op for n in nodes for op in self.reading.ops.get(n, ()))
        own_leaves = self._own_leaves(tuple(leaves), nodes)
        if isinstance(own_leaves, Refusal):
            return own_leaves
        changed = self._changed_between(own_leaves, nodes)
        if changed is not None:
            return changed
        border = next((part.border for part in parts if part.border), None)
        return Region(node, tuple(nodes), ops, own_leaves, drop_ones(values[value]), border)

    def _own_leaves(self, leaves: Sequence[Node], nodes: Sequence[Node]) -> tuple[Node, ...] | Refusal:
        """The own nodes outside a region that hand it the ATen values `leaves`: the ones that it reads.

        Several own nodes may be one tensor: `x`, `x.contiguous()` where that does nothing, `x.add_(1)`.
        """
        tensor_of = self.reading.fakes
        own: dict[int, Node] = {}
        for operand in (n for node in nodes for n in node.all_input_nodes if n not in nodes):
            if not isinstance(self.reading.values.get(operand), Node):
                continue
            if own.setdefault(id(tensor_of[operand]), operand) is not operand:
                return Refusal("an operand is read under two names")
        owners = [self.owner.get(leaf) for leaf in leaves]
        found = [own.get(id(tensor_of[owner])) for owner in owners if owner is not None]
        result = tuple(node for node in found if node is not None)
        return result if len(result) == len(leaves) else Refusal("an operand has no node of its own")

    def _value(self, node: Node) -> Node:
        value = self.reading.values[node]
        assert isinstance(value, Node)
        return value

    def _changed_between(self, leaves: Sequence[Node], nodes: Sequence[Node]) -> Refusal | None:
        """A leaf must not be written to between the first node that reads it and the place of the rewritten region."""
        start, end = self.order[nodes[0]], self.order[nodes[-1]]
        inside = set(nodes)
        for writer, storage in self.written:
            if not start < self.order[writer] < end or writer in inside:
                continue
            if any(self.reading.storage(self.reading.fakes[leaf]) == storage for leaf in leaves):
                return Refusal("an operand is written to in place within the region")
        return None


def _owners(graph: Graph, reading: Reading) -> dict[Node, Node]:
    """The first own node that carries each ATen value."""
    owner: dict[Node, Node] = {}
    for node in graph.nodes:
        value = reading.values.get(node)
        if isinstance(value, Node):
            owner.setdefault(value, node)
    return owner


def _writes(reading: Reading) -> tuple[tuple[Node, object], ...]:
    return tuple(reading.mutations)


def _renumber(region: Region, leaves: dict[Node, int], value: object) -> Expression:
    """A region's expression with its leaves numbered among those of the region that absorbs it."""
    assert callable(value)
    table = [leaves.setdefault(value(leaf), len(leaves)) for leaf in region.leaves]
    terms = tuple(
        replace(term, factors=tuple(replace(f, leaf=table[f.leaf]) for f in term.factors))
        for term in region.expression.terms
    )
    return replace(region.expression, terms=terms)


def _unfit(op: Node) -> Refusal | None:
    """Regions are floating point or complex, dense and plain."""
    for value in _tensors(op):
        if not (value.dtype.is_floating_point or value.dtype.is_complex):
            return Refusal(f"{_name(op)} works on {value.dtype}; regions are floating point or complex")
        if str(value.layout) != "torch.strided" or value.is_quantized:
            return Refusal(f"{_name(op)} works on a tensor that is not dense")
    dtypes = {value.dtype for value in _tensors(op)}
    if len(dtypes) > 1:
        return Refusal(f"{_name(op)} mixes dtypes {sorted(map(str, dtypes))}")
    if any(v.numel() == 0 for v in _tensors(op) if all(isinstance(s, int) for s in v.shape)):
        return Refusal(f"{_name(op)} works on a tensor without elements")
    return None


def _tensors(op: Node) -> Iterator[Tensor]:
    for node in (op, *op.all_input_nodes):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            yield value


def _uses(user: Node, operand: Node) -> int:
    uses = 0

    def visit(node: Node) -> Node:
        nonlocal uses
        uses += node is operand
        return node

    map_arg((user.args, user.kwargs), visit)
    return uses


def _shape(expression: Expression) -> list[int | str]:
    """Sizes of the output axes, the symbol where an axis is one symbolic index."""
    shape: list[int | str] = []
    for axis, size in zip(expression.axes, expression.shape, strict=True):
        symbols = [index.symbol for index in axis if index.symbol]
        shape.append(symbols[0] if symbols and len(axis) == 1 else size)
    return shape


def _name(op: Node) -> str:
    return str(op.target).removeprefix("aten.").partition(".")[0]
