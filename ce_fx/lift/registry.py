"""The table of lift rules, and what a rule is handed.

A rule is a function from one ATen node to the Expression it computes, or a Refusal:

    @lifts(torch.ops.aten.neg.default)
    def neg(node: Node, operands: Operands) -> Expression | Refusal:
        \"\"\"-x is x with the opposite coefficient.\"\"\"
        return scale(operands.tensor(node.args[0]), -1)

Adding an op is one such function in `lift/rules/<family>.py`; nothing else is edited.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from ce_fx.algebra import Axes, Expression, Index, flat, leaf_expression, substitute
from ce_fx.algebra.derived import Derived
from ce_fx.lift.refusal import Refusal
from ce_fx.sizes import hint, size_or_symbol, symbol

Rule: TypeAlias = "Callable[[Node, Operands], Expression | Refusal]"

RULES: dict[Any, Rule] = {}

SPLITS: set[Any] = set()
"""ATen ops that give several parts of one tensor; each part is lifted as `operator.getitem` of the op."""


def lifts(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for some ATen overloads.

    Raises:
        ValueError: an overload has a rule already.
    """

    def register(rule: Rule) -> Rule:
        for target in targets:
            if target in RULES:
                raise ValueError(f"{target} has two lift rules: {RULES[target].__name__} and {rule.__name__}")
            RULES[target] = rule
        return rule

    return register


class Operands:
    """What a rule may ask about the operands of its node.

    Args:
        values: expressions of ATen nodes that have been lifted within the region.
        leaves: numbers of the leaves met so far, by ATen node; a node that is in neither becomes a new leaf.
        numbers: the source of fresh index numbers.
        shared: ATen nodes that are read more than once: each reader gets their expression over indices of its own.
    """

    def __init__(
        self,
        values: dict[Node, Expression],
        leaves: dict[Node | Derived, int],
        numbers: count[int],
        shared: Collection[Node] = (),
    ) -> None:
        self._values = values
        self._leaves = leaves
        self._numbers = numbers
        self._shared = shared

    def fresh(self, name: str, size: int) -> Index:
        """A new index whose printed letter resembles `name`."""
        return Index(f"{name.partition('#')[0] or 'i'}#{next(self._numbers)}", size)

    def sized(self, name: str, size: Any) -> Index:
        """A new index of a size that may be symbolic."""
        index = self.fresh(name, hint(size))
        return index if isinstance(size, int) else Index(index.name, index.size, symbol(size))

    def tensor(self, arg: Any) -> Expression:
        """The expression of a tensor operand. A leaf gets indices of its own each time it is asked for."""
        if arg in self._values:
            value = self._values[arg]
            return self._renamed(value) if arg in self._shared else value
        number = self._leaves.setdefault(arg, len(self._leaves))
        return leaf_expression(number, self._leaf_axes(fake_of(arg)))

    def derived(self, leaf: Derived, shape: Sequence[int]) -> Expression:
        """The expression of a leaf that is computed from sources, which are ATen nodes outside the region.

        Raises:
            ValueError: a source is computed within the region.
        """
        for source in leaf.sources:
            if source in self._values:
                raise ValueError(f"{source} is computed within the region")
            self._leaves.setdefault(source, len(self._leaves))
        number = self._leaves.setdefault(leaf, len(self._leaves))
        return leaf_expression(number, tuple(() if size == 1 else (self.fresh("i", size),) for size in shape))

    def key(self, leaf: int) -> Node | Derived:
        """What a leaf is, by its number."""
        return next(key for key, number in self._leaves.items() if number == leaf)

    def inside(self, arg: Any) -> bool:
        """Whether an operand is computed within the region."""
        return arg in self._values

    def again(self, arg: Any) -> Expression:
        """The expression of a tensor operand over indices of its own, however often it is read."""
        return self._renamed(self.tensor(arg))

    def _renamed(self, value: Expression) -> Expression:
        indices = frozenset(flat(value.axes)).union(*(term.indices for term in value.terms))
        names = {i: (Index(self.fresh(i.name, i.size).name, i.size, i.symbol),) for i in sorted(indices)}
        return substitute(value, names)

    def _leaf_axes(self, fake: torch.Tensor) -> Axes:
        names = _HINTS.get(fake.ndim, "")
        axes = []
        for dim, size in enumerate(fake.shape):
            name = names[dim] if dim < len(names) else "i"
            one = isinstance(size, int) and size == 1
            axes.append(() if one else (self.sized(name, size),))
        return tuple(axes)


_HINTS = {4: "bshw", 5: "bsdhw", 3: "bsl"}


class NoTensor(Exception):
    """Unwinds a rule whose operand is a symbolic size; the op is refused."""


def fake_of(arg: Any) -> torch.Tensor:
    """The fake tensor that an ATen node yields.

    Raises:
        NoTensor: it yields a symbolic size.
    """
    value = arg.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise NoTensor
    return value


def sizes(fake: torch.Tensor) -> tuple[int | str, ...]:
    """The shape of a fake tensor, symbolic sizes as their symbols."""
    return tuple(map(size_or_symbol, fake.shape))
