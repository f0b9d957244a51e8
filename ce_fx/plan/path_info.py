"""A plan told in opt_einsum's words: its `PathInfo` fields, printable, totals first and one row a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ce_fx.algebra import Index, flat
from ce_fx.algebra.printer import name_indices, to_string
from ce_fx.plan.network import Network
from ce_fx.plan.plan import Plan
from ce_fx.plan.planner import path_of_tree
from ce_fx.plan.tree import splits_of


@dataclass(frozen=True)
class PathStep:
    """One pairwise step.

    Attributes:
        pair: the positions, in the list of what is left then, of the two that are joined.
        string: the step alone, as a string; its `|` names the convolution axes on which both sides have a part.
        removed: the letters that are summed.
        remaining: the terms that are left afterwards, the new one last.
        flops: multiply-adds.
        size: elements of the result.
        scaling: number of distinct letters.
    """

    pair: tuple[int, ...]
    string: str
    removed: frozenset[str]
    remaining: tuple[str, ...]
    flops: int
    size: int
    scaling: int


@dataclass(frozen=True)
class PathInfo:
    """What `contract_path` tells of a plan. Costs are multiply-adds, sizes are elements.

    Attributes:
        eq: the string of the whole.
        path: opt_einsum's linear path.
        steps: one entry for each pair of the path.
        opt_cost: multiply-adds of the plan.
        naive_cost: multiply-adds of one loop over all indices at once: the number of points, a convolution axis
            counting its output positions times the sizes of all its kernels, times the `n - 1` products at a point.
            (opt_einsum adds one more for the sum, since it counts multiplications and additions apart.)
        largest_intermediate: elements of the largest intermediate, the output included.
        method: how the plan was found: "written", "optimal", "connected", "greedy" or "path".
        shapes: of the operands, an axis of several letters split into them.
        size_dict: sizes by letter; a convolution letter has the size of its features.
    """

    eq: str
    path: list[tuple[int, ...]]
    steps: tuple[PathStep, ...]
    opt_cost: int
    naive_cost: int
    largest_intermediate: int
    method: str
    shapes: tuple[tuple[int, ...], ...]
    size_dict: dict[str, int]

    @property
    def speedup(self) -> float:
        """Naive cost over the plan's cost."""
        return self.naive_cost / max(1, self.opt_cost)

    @property
    def input_subscripts(self) -> str:
        """The operands' part of the string."""
        return self.eq.partition("->")[0]

    @property
    def output_subscript(self) -> str:
        """The output's part of the string, without a pipe."""
        return self.eq.partition("->")[2].partition("|")[0]

    @property
    def indices(self) -> set[str]:
        """All letters."""
        return set(self.size_dict)

    @property
    def scale_list(self) -> list[int]:
        """The number of distinct letters of each step."""
        return [step.scaling for step in self.steps]

    @property
    def size_list(self) -> list[int]:
        """The elements of the result of each step."""
        return [step.size for step in self.steps]

    @property
    def contraction_list(self) -> list[tuple[tuple[int, ...], frozenset[str], str, tuple[str, ...], bool]]:
        """opt_einsum's tuples: (positions, letters summed, string, terms left, False)."""
        return [(step.pair, step.removed, step.string, step.remaining, False) for step in self.steps]

    @cached_property
    def _text(self) -> str:
        totals = [
            ("Complete contraction", self.eq),
            ("Naive scaling", str(len(self.indices))),
            ("Optimized scaling", str(max(self.scale_list, default=0))),
            ("Naive cost", f"{self.naive_cost:.3e} multiply-adds"),
            ("Optimized cost", f"{self.opt_cost:.3e} multiply-adds ({self.method})"),
            ("Theoretical speedup", f"{self.speedup:.3e}"),
            ("Largest intermediate", f"{self.largest_intermediate:.3e} elements"),
        ]
        lines = [f"{name:>22}:  {value}" for name, value in totals]
        width = max([len(step.string) for step in self.steps] + [len("step")])
        rule = "-" * (width + 46)
        lines += [rule, f"{'scaling':>8} {'pair':>8} {'multiply-adds':>14} {'elements':>11}  step", rule]
        for step in self.steps:
            pair = ",".join(map(str, step.pair))
            lines.append(f"{step.scaling:>8} {pair:>8} {step.flops:>14.3e} {step.size:>11.3e}  {step.string}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self._text


def path_info(plan: Plan) -> PathInfo:
    """Describe a plan."""
    network = plan.network
    names = name_indices(network.term, network.output)
    path = path_of_tree(plan.tree, network.n)
    sizes = {names[index]: index.size for index in (*network.indices, *flat(network.output)) if index in names}
    sizes |= {names[axis.window.features]: axis.window.features.size for axis in network.axes}
    return PathInfo(
        eq=to_string(network.term, network.output),
        path=path,
        steps=_steps(plan, path),
        opt_cost=plan.flops,
        naive_cost=naive_cost(network),
        largest_intermediate=plan.largest,
        method=plan.method,
        shapes=tuple(tuple(index.size for index in flat(factor.axes)) for factor in network.term.factors),
        size_dict=sizes,
    )


def step_lines(plan: Plan) -> list[str]:
    """The pairwise steps of a plan as strings, in the order of evaluation."""
    return [step.string for step in _steps(plan, path_of_tree(plan.tree, plan.network.n))]


def naive_cost(network: Network) -> int:
    """Multiply-adds of one loop over all indices (see `PathInfo`)."""
    points = network.prod((1 << len(network.indices)) - 1)
    for axis in network.axes:
        points *= axis.window.out.size * prod(tap.index.size for tap in axis.window.taps)
    return points * max(1, network.n - 1)


def _steps(plan: Plan, path: Sequence[tuple[int, ...]]) -> tuple[PathStep, ...]:
    network = plan.network
    names = name_indices(network.term, network.output)
    waiting = [1 << n for n in range(network.n)]
    steps = []
    for pair, (left, right) in zip(path, splits_of(plan.tree), strict=False):
        both = left | right
        waiting = [subset for subset in waiting if subset not in (left, right)] + [both]
        letters = [_letters(network, names, subset) for subset in (left, right, both)]
        joined = [
            names[axis.window.features] for axis in network.axes if axis.operands & left and axis.operands & right
        ]
        last = both == network.everything
        out = to_string(network.term, network.output).partition("->")[2].partition("|")[0] if last else None
        string = f"{''.join(letters[0])},{''.join(letters[1])}->{''.join(letters[2]) if out is None else out}"
        steps.append(
            PathStep(
                pair=pair,
                string=string + (f"|{''.join(joined)}" if joined else ""),
                removed=frozenset(letters[0] + letters[1]) - frozenset(letters[2]),
                remaining=tuple("".join(_letters(network, names, subset)) for subset in waiting),
                flops=network.flops(left, right),
                size=network.size(both),
                scaling=len({*letters[0], *letters[1], *letters[2]}),
            )
        )
    return tuple(steps)


def _letters(network: Network, names: dict[Index, str], subset: int) -> list[str]:
    """The letters that the intermediate of a subset has, in the order of its operands."""
    kept = network.keep(subset)
    windows = {
        index: window.features
        for window in network.term.windows
        for index in (window.features, *(tap.index for tap in window.taps))
    }
    letters: dict[str, None] = {}
    for n, factor in enumerate(network.term.factors):
        if subset >> n & 1:
            for index in flat(factor.axes):
                if index in windows or network.bit[index] & kept:
                    letters[names[index]] = None
    return list(letters)
