"""Grow regions: the maximal stretches of a graph that are one multilinear expression.

A region is a set of the graph's *own* nodes that computes one value, read through their ATen ops. It is grown along
the graph's order: a node joins the regions of those of its operands that nothing else uses, if the rules find one
exact expression for the whole; otherwise it starts a region of its own, and the reason is kept. A leaf all of whose
users are inside joins as well. So nothing outside a region reads a value inside it but its result, and the region can
be replaced in place.

Complexity: every node's rules run at most 2 + (number of joined operands) times, and once more for every leaf that
joins a region around it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ce_fx.algebra import Expression
from ce_fx.algebra.derived import Derived
from ce_fx.capture.reading import Reading, written
from ce_fx.lift import rules as _rules  # noqa: F401  (importing it fills the table)
from ce_fx.lift.again import computing_again
from ce_fx.lift.blocks import Part, resolved
from ce_fx.lift.products import drop_ones
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.region import Region, Regions, most_in_one_product, renumbered, whole_parts, with_leaves
from ce_fx.lift.registry import RULES, SPLITS, NoTensor, Operands, sizes
from ce_fx.lift.saved import operands_of, saves
from ce_fx.sizes import known, product


def find_regions(graph: Graph, reading: Reading, constant: Collection[Node] = ()) -> Regions:
    """Find the regions of a graph from its reading.

    Args:
        graph: the graph.
        reading: what it computes.
        constant: own nodes that depend on weights only. Under autocast they may mix dtypes: a region computes them in
            the wider one.
    """
    return _Growth(graph, reading, constant).run()


def begins_behind(region: Region, reading: Reading) -> str | None:
    """What a region that could grow no further begins behind: an op that has no rule, or that cannot be read."""
    for leaf in region.leaves:
        if leaf in reading.failures and leaf.op not in ("placeholder", "get_attr"):
            return f"it begins behind {getattr(leaf.target, '__name__', leaf.target)}: {reading.failures[leaf]}"
        ops = reading.ops.get(leaf, ())
        if ops and ops[-1].target not in RULES and ops[-1].target not in SPLITS:
            return f"it begins behind {_name(ops[-1])}, which is not multilinear"
    return None


class _Growth:
    """The state of one pass over a graph."""

    def __init__(self, graph: Graph, reading: Reading, constant: Collection[Node]) -> None:
        self.graph = graph
        self.constant = constant
        self.reading = reading
        self.owner = _owners(graph, reading)
        self.order = {node: n for n, node in enumerate(graph.nodes)}
        self.grown: dict[Node, Region] = {}
        self.absorbed: set[Node] = set()
        self.refusals: dict[Node, Refusal] = {}
        self.numbers = count()
        self.written = _writes(reading)
        self.splits = {n for n, ops in reading.ops.items() if ops and ops[0].target in SPLITS and _all_parts(ops)}

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
        whole = [r for node, region in self.grown.items() if node not in self.absorbed for r in whole_parts(region)]
        whole.sort(key=lambda region: self.order[region.output])
        lift = partial(self._lift, joined=(), parts=())
        again = computing_again(whole, self.order.__getitem__, lift, self._changed_between)
        return Regions(tuple(whole), self.refusals, again)

    def _readable(self, node: Node) -> bool:
        """Whether a node is an op that gives one tensor."""
        if node.op not in ("call_function", "call_method", "call_module") or node in self.reading.failures:
            return False
        return isinstance(self.reading.values.get(node), Node)

    def _grow(self, node: Node) -> Region | Refusal:
        inner = [n for n in dict.fromkeys(self._operands(node)) if self._joinable(n, node)]
        first = result = self._attempt(node, inner)
        if isinstance(result, Refusal) and len(inner) > 1:
            for cut in inner:
                result = self._attempt(node, [n for n in inner if n is not cut])
                if isinstance(result, Region):
                    break
        if isinstance(result, Refusal) and inner:
            result = self._attempt(node, [])
        if isinstance(result, Refusal):
            return result
        if isinstance(first, Refusal):
            result = replace(result, border=first.reason)
        return self._closed(result)

    def _joinable(self, operand: Node, user: Node) -> bool:
        """Whether an operand's region may be absorbed: only this node uses its value, once."""
        return operand in self.grown and self._readers(operand) == {user} and self._operands(user).count(operand) == 1

    def _operands(self, node: Node) -> list[Node]:
        """What a node reads, as often as it reads it; through a split, what is split."""
        read = _operands(node)
        return [n for one in read for n in (_operands(one) if one in self.splits else [one])]

    def _readers(self, node: Node) -> set[Node]:
        """What reads a node; through a split, what reads its parts."""
        return {reader for user in node.users for reader in (user.users if user in self.splits else [user])}

    def _closed(self, region: Region) -> Region:
        """The region with those of its leaves absorbed that nothing outside it reads.

        A leaf that a product holds twice stays one: in the product of both it would be computed twice.
        """
        tried: set[Node] = set()
        while True:
            inside = set(region.nodes)
            open_leaves = [n for n in region.leaves if n in self.grown and inside.issuperset(self._readers(n))]
            leaf = next((n for n in open_leaves if n not in tried), None)
            if leaf is None:
                return region
            tried.add(leaf)
            if most_in_one_product(region, leaf) > 1:
                continue
            inner = self.grown[leaf]
            nodes = sorted({*region.nodes, *inner.nodes}, key=self.order.__getitem__)
            wider = self._lift(region.output, nodes, (), (*region.parts, inner))
            if isinstance(wider, Region):
                region = replace(wider, border=region.border)

    def _attempt(self, node: Node, inner: Sequence[Node]) -> Region | Refusal:
        """Lift a node with the regions of some operands joined; its other operands are leaves."""
        new = [*(n for n in node.all_input_nodes if n in self.splits), node]
        return self._lift(node, new, [self.grown[n] for n in inner], [self.grown[n] for n in inner])

    def _lift(
        self, output: Node, new: Sequence[Node], joined: Sequence[Region], parts: Sequence[Region]
    ) -> Region | Refusal:
        """Lift some nodes, in graph order, on top of regions that are whole already.

        Args:
            output: the last node.
            new: the nodes whose rules run.
            joined: regions whose expressions are taken as they are.
            parts: what to remember as the regions that this one grew from.
        """
        state = self.reading.states[output]
        nodes = sorted({*new, *(n for part in joined for n in part.nodes)}, key=self.order.__getitem__)
        if any(self.reading.states[n] != state for n in nodes):
            return Refusal("gradients are switched on or off in between")
        leaves: dict[Node | Derived, int] = {}
        values = {self._value(part.output): renumbered(part, leaves) for part in joined}
        device = getattr(self._value(output).meta["val"], "device", None)  # of a grad mode, or of a size
        precision = None if device is None else state.precision(device)
        refusal = self._run_rules(new, values, leaves, precision)
        if refusal is not None:
            return refusal
        value = self._value(output)
        if value not in values:
            return Refusal("it hands on a value that exists already")
        return self._whole(output, nodes, values[value], leaves, parts, precision)

    def _run_rules(
        self,
        new: Sequence[Node],
        values: dict[Node, Expression],
        leaves: dict[Node | Derived, int],
        precision: torch.dtype | None,
    ) -> Refusal | None:
        """Fill in the values of all ops of some nodes, or say why one has none."""
        ops = [op for node in new for op in self.reading.ops.get(node, ())]
        weights = {op for node in new if node in self.constant for op in self.reading.ops.get(node, ())}
        reads = Counter(n for op in ops for n in _operands(op))
        operands = Operands(values, leaves, self.numbers, {n for n, times in reads.items() if times > 1})
        for op in ops:
            if op.target in SPLITS:
                continue  # its parts are read one by one
            rule = RULES.get(op.target)
            if rule is None:
                return Refusal(f"{_name(op)} is not multilinear, or has no rule")
            refusal = _unfit(op, precision, op in weights)
            if refusal is not None:
                return refusal
            try:
                result = rule(op, operands)
            except NoTensor:
                return Refusal(f"{_name(op)} computes with a symbolic size")
            if not isinstance(result, Refusal):
                result = _visible_write(op, operands, ops, leaves) or result
            if isinstance(result, Refusal):
                return result
            if _shape(result) != sizes(op.meta["val"]):
                return Refusal(f"{_name(op)} was read with shape {_shape(result)}, a bug of its rule")
            values[op] = result
        return None

    def _whole(
        self,
        output: Node,
        nodes: Sequence[Node],
        expression: Expression,
        leaves: dict[Node | Derived, int],
        parts: Sequence[Region],
        precision: torch.dtype | None,
    ) -> Region | Refusal:
        """A region of some nodes, its leaves in order: own nodes first, then what is derived from them."""
        lifted = drop_ones(expression)
        result = resolved(lifted, _Parts(leaves).narrow, Operands({}, {}, self.numbers).fresh)
        partial = isinstance(result, Refusal)
        given = [leaf for leaf in leaves if isinstance(leaf, Node)]
        derived = _derived(leaves, (lifted,) if isinstance(result, Refusal) else (lifted, result))
        ops = tuple(op for n in nodes for op in self.reading.ops.get(n, ()) if op.target not in SPLITS)
        own_leaves = self._own_leaves(given, nodes)
        if isinstance(own_leaves, Refusal):
            return own_leaves
        changed = self._changed_between(own_leaves, nodes)
        if changed is not None:
            return changed
        numbers = {leaf: n for n, leaf in enumerate([*given, *derived])}
        table = {old: numbers[leaf] for leaf, old in leaves.items() if leaf in numbers}
        return Region(
            output,
            tuple(nodes),
            ops,
            own_leaves,
            tuple(given),
            with_leaves(lifted, table),
            with_leaves(lifted if isinstance(result, Refusal) else drop_ones(result), table),
            tuple(replace(leaf, sources=tuple(numbers[source] for source in leaf.sources)) for leaf in derived),
            next((part.border for part in parts if part.border), None),
            tuple(parts),
            partial,
            precision,
        )

    def _own_leaves(self, leaves: Sequence[Node], nodes: Sequence[Node]) -> tuple[Node, ...] | Refusal:
        """The own nodes outside a region that hand it the ATen values `leaves`: the ones that it reads.

        Several own nodes may be one tensor: `x`, `x.contiguous()` where that does nothing, `x.add_(1)`.
        """
        tensor_of = self.reading.fakes
        own: dict[int, Node] = {}
        inside = set(nodes)
        for operand in (n for node in nodes for n in node.all_input_nodes if n not in inside):
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
        """A leaf must not be written to after the first node that reads it.

        Up to the place of the rewritten region that would change its value. Behind it, where gradients are recorded, it
        could change what the backward reads: of `(x - y) @ w` that is `x - y`, of `x @ w - y @ w` it is y. A leaf that
        the backward reads as written, too, is no news.
        """
        start, place = self.order[nodes[0]], self.order[nodes[-1]]
        ops = [op for node in nodes for op in self.reading.ops.get(node, ())]
        inside = set(nodes)
        storages = {self.reading.storage(self.reading.fakes[leaf]) for leaf in leaves}
        for writer, storage in self.written:
            if not start < self.order[writer] or writer in inside or storage not in storages:
                continue
            if self.order[writer] < place:
                return Refusal("an operand is written to in place within the region")
            if self.reading.states[nodes[-1]].grad and not any(saves(op, storage) for op in ops):
                return Refusal("an operand is written to in place behind the region, whose backward may need it")
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


def _derived(leaves: Mapping[Node | Derived, int], expressions: Sequence[Expression]) -> list[Derived]:
    """The derived leaves that some expressions need, in order: what one is derived from comes before it."""
    used = {factor.leaf for each in expressions for term in each.terms for factor in term.factors}
    needed: list[Derived] = []
    for leaf in reversed(list(leaves)):
        if isinstance(leaf, Derived) and leaves[leaf] in used:
            used.update(leaves[source] for source in leaf.sources)
            needed.append(leaf)
    return needed[::-1]


class _Parts:
    """Adds leaves that are parts of others to those of a region."""

    def __init__(self, leaves: dict[Node | Derived, int]) -> None:
        self.leaves = leaves

    def narrow(self, leaf: int, part: Part) -> int:
        """The number of a leaf that is a part of another."""
        source = next(key for key, number in self.leaves.items() if number == leaf)
        params = (part.shape, part.dim, part.start, part.length, part.step)
        return self.leaves.setdefault(Derived("part", (source,), params), len(self.leaves))


def _visible_write(
    op: Node, operands: Operands, ops: Sequence[Node], leaves: Collection[Node | Derived]
) -> Refusal | None:
    """An op may write in place to what the region computed and nothing reads but the result of the write."""
    for target in (n for n in written(op) if isinstance(n, Node)):
        storage = Reading.storage(target.meta["val"])
        given = any(isinstance(n, Node) and Reading.storage(n.meta["val"]) == storage for n in leaves)
        aliases = [n for n in ops if n is not op and Reading.storage(n.meta["val"]) == storage]
        if given or not operands.inside(target) or any(len(n.users) > 1 for n in aliases):
            return Refusal(f"{_name(op)} writes to a tensor that is read elsewhere")
    return None


def _unfit(op: Node, precision: torch.dtype | None, weights: bool) -> Refusal | None:
    """Regions are floating point or complex, dense and plain; of one dtype where autocast does not cast."""
    for value in _tensors(op):
        if not (value.dtype.is_floating_point or value.dtype.is_complex):
            return Refusal(f"{_name(op)} works on {value.dtype}; regions are floating point or complex")
        if str(value.layout) != "torch.strided" or value.is_quantized:
            return Refusal(f"{_name(op)} works on a tensor that is not dense")
    if any(not known(size) for v in _tensors(op) for size in (*v.shape, *v.stride())):
        return Refusal(f"{_name(op)} works on a tensor whose size is only known when it runs")
    dtypes = {value.dtype for value in _tensors(op)}
    cast = dtypes <= {precision, torch.float32} and (weights or op.meta["val"].dtype == precision)
    if len(dtypes) > 1 and not cast:
        return Refusal(f"{_name(op)} mixes dtypes {sorted(map(str, dtypes))}")
    if any(v.numel() == 0 for v in _tensors(op) if all(isinstance(s, int) for s in v.shape)):
        return Refusal(f"{_name(op)} works on a tensor without elements")
    return None


def _tensors(op: Node) -> Iterator[Tensor]:
    for node in (op, *op.all_input_nodes):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            yield value


def _operands(node: Node) -> list[Node]:
    """The nodes that a node reads, each as often as it is read."""
    return operands_of((node.args, node.kwargs))


def _all_parts(ops: Sequence[Node]) -> bool:
    """Whether an own node only splits a tensor: one op, and its parts."""
    return all(op.target is operator.getitem and op.args[0] is ops[0] for op in ops[1:])


def _shape(expression: Expression) -> tuple[int | str, ...]:
    """Sizes of the output axes, the name where one is symbolic."""
    return tuple(product(index.symbol or index.size for index in axis) for axis in expression.axes)


def _name(op: Node) -> str:
    return str(op.target).removeprefix("aten.").partition(".")[0]
