"""Objectives: what a step costs, as a function of the two operand subsets that it joins.

Every objective is a `Goal`: a step cost that a search adds up (or takes the maximum of), and perhaps a bound on the
size of an intermediate. Multiply-adds and elements are exact integers; seconds are floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

from ce_fx.plan.modes import Mode, differentiable, grads, runs
from ce_fx.plan.network import Network
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import Step, step_of
from ce_fx.plan.ways import best_way, ops_of_way, ways_of

Cost: TypeAlias = "int | float"
StepCost: TypeAlias = Callable[[int, int, Cost], Cost]
"""`step(left, right, room)`: the cost of the step. Where that is `room` or more, anything >= room may be returned."""
Pair: TypeAlias = tuple[int, int]
Splits: TypeAlias = Mapping[int, Pair]
"""A tree as a table: each joined subset and the two subsets that it is made of."""

_FOLDED = 1000  # a folded step is paid once for many evaluations: a thousandth


@dataclass(frozen=True)
class Goal:
    """What a search minimises.

    Attributes:
        step: the cost of one step.
        size: elements of the intermediate of a subset.
        peak: the cost of a tree is the largest cost of its steps; otherwise their sum.
        limit: elements that no intermediate may exceed (None: no limit).
        unit: what the search's number is divided by to be in multiply-adds, elements or seconds.
        whole: the division drops a remainder, which only broke ties.
    """

    step: StepCost
    size: Callable[[int], int]
    peak: bool = False
    limit: int | None = None
    unit: int = 1
    whole: bool = False

    def in_unit(self, cost: Cost) -> Cost:
        """A cost of the search in multiply-adds, elements or seconds."""
        if self.unit == 1:
            return cost
        return cost // self.unit if self.whole else cost / self.unit

    def fits(self, subset: int) -> bool:
        """Whether the intermediate of a subset is within the limit."""
        return self.limit is None or self.size(subset) <= self.limit

    def total(self, splits: Splits) -> Cost:
        """The cost of a whole tree, in the search's own unit; infinite where an intermediate is over the limit."""
        if not all(map(self.fits, splits)):
            return inf
        return self.sum(splits.values())

    def sum(self, pairs: Iterable[Pair]) -> Cost:
        """The cost of some steps: their sum, or the largest of them."""
        costs = [self.step(left, right, inf) for left, right in pairs]
        return max(costs, default=0) if self.peak else sum(costs)


class Memo(dict[int, int]):
    """A function of an int, remembered; a lookup costs a dictionary's."""

    def __init__(self, function: Callable[[int], int]) -> None:
        super().__init__()
        self.function = function

    def __missing__(self, key: int) -> int:
        """Compute and remember."""
        value = self[key] = self.function(key)
        return value


def foldable(network: Network, subset: int) -> bool:
    """Whether an intermediate is computed once and kept, in mode "fold".

    It depends on constants only and has at most twice the elements of the larger of the dense kernel (the product of
    all constants) and the largest operand. Without the bound a search takes a free gigantic tensor for a bargain.
    """
    if subset & ~network.constant:
        return False
    dense = network.size(network.constant)
    return network.size(subset) <= 2 * max(dense, *(network.operand_size(n) for n in range(network.n)))


def flops_goal(network: Network, mode: Mode, limit: int | None = None) -> Goal:
    """Exact multiply-adds. In training each gradient is as much again, and so is what is recomputed; a folded step
    counts a thousandth.

    The backward of `z = sum(x * y)` is two more such sums, with as many multiply-adds each: DESIGN.md's
    `1 + left needs grad + right needs grad`.
    """
    flops = _pair_flops(network)
    size = network.size
    if mode in ("train", "checkpoint"):
        grad, once = differentiable(network, mode), network.everything if mode == "checkpoint" else 0

        def train(left: int, right: int, room: Cost) -> Cost:  # `runs` and `grads`, in the innermost loop
            times = 1 + (once != 0 and left | right != once)
            return flops(left, right) * (times + (left & grad != 0) + (right & grad != 0))

        return Goal(train, size, limit=limit)
    folds = Memo(lambda subset: foldable(network, subset))
    if mode == "fold" and network.constant:

        def fold(left: int, right: int, room: Cost) -> Cost:
            return flops(left, right) * (1 if folds[left | right] else _FOLDED)

        return Goal(fold, size, limit=limit, unit=_FOLDED)
    return Goal(lambda left, right, room: flops(left, right), size, limit=limit)


def peak_goal(network: Network, limit: int | None = None) -> Goal:
    """Elements of the largest intermediate, the output included."""
    return Goal(lambda left, right, room: network.size(left | right), network.size, peak=True, limit=limit)


def saved_elements(network: Network, left: int, right: int) -> int:
    """Elements of the intermediates that autograd keeps for the backward of a step; operands are kept anyway.

    The gradient of one side reads the other side.
    """
    saved = 0
    for kept, other in ((left, right), (right, left)):
        if kept & (kept - 1) and other & network.differentiable:
            saved += network.size(kept)
    return saved


def saved_goal(network: Network, limit: int | None = None) -> Goal:
    """Saved activations, then training multiply-adds: both are sums, so their lexicographic order is one too.

    It is encoded in one integer, `saved * unit + flops`, with a unit that no tree's multiply-adds can reach.
    """
    unit = 1 << _flops_ceiling(network).bit_length()
    flops = flops_goal(network, "train").step

    def step(left: int, right: int, room: Cost) -> Cost:
        return saved_elements(network, left, right) * unit + flops(left, right, room)

    return Goal(step, network.size, limit=limit, unit=unit, whole=True)


def _flops_ceiling(network: Network) -> int:
    """More multiply-adds than any tree takes, three times over for training."""
    most = 3 * max(1, network.n - 1) * network.prod((1 << len(network.indices)) - 1)
    for axis in network.axes:
        kernel = 1 + axis.window.reach
        most *= (axis.window.features.size + axis.window.out.size + kernel) * kernel
    return most + 1


def _pair_flops(network: Network) -> Callable[[int, int], int]:
    """`Network.flops`, with its parts in tables that a search can read fast."""
    keep, prods = Memo(network.keep), Memo(network.prod)
    if not network.axes:
        return lambda left, right: prods[keep[left] | keep[right]]
    here = 0
    for axis in network.axes:
        here |= axis.operands
    shift = network.n
    low = network.everything
    on_axes = Memo(lambda key: network.axis_flops(key >> shift, key & low))

    def flops(left: int, right: int) -> int:
        return prods[keep[left] | keep[right]] * on_axes[(left & here) << shift | right & here]

    return flops


def time_goal(network: Network, mode: Mode, model: TimeModel, limit: int | None = None) -> Goal:
    """Predicted seconds.

    A step's ops depend on its sizes only, so they are priced once per `signature`. A step that multiply-adds at the
    fastest rate cannot afford is not priced at all. The side with the first operand is priced as the left one, as it
    is in the trees that a search returns, so that the order of the sides makes no difference. Where memory is limited
    every step is evaluated in the way of its kind, whose intermediates are those that the limit was checked for.
    """
    flops = _pair_flops(network)
    prices: dict[object, float] = {}
    slowest = 1 / model.fastest
    least = min(r.t0 * min(1, r.alone) for r in model.forward_rates.values())
    folds = Memo(lambda subset: mode == "fold" and foldable(network, subset))

    def priced(step: Step, wanted: int, times: int) -> float:
        if limit is None:
            return best_way(step, network, model, wanted, times)[0]
        return model.seconds(ops_of_way(step, network, ways_of(step, network)[0]), wanted, times)

    def step(left: int, right: int, room: Cost) -> Cost:
        if right & -right < left & -left:  # one price for both orders of the sides
            left, right = right, left
        weight = 1 / _FOLDED if folds[left | right] else 1
        bound = (least + flops(left, right) * slowest) * weight
        if bound >= room:
            return bound
        wanted, times = grads(network, left, right, mode), runs(network, left | right, mode)
        key = (signature(network, left, right), wanted, times)
        price = prices.get(key)
        if price is None:
            price = prices[key] = priced(step_of(network, left, right), wanted, times)
        return price * weight

    return Goal(step, network.size, limit=limit)


def signature(network: Network, left: int, right: int) -> object:
    """What the ops of a step depend on: the sizes of its kinds of indices, and the grids of its convolution axes.

    A kind of index that is there with size 1 is not one that is absent: the former makes a batched product.
    """
    a, b, out = network.keep(left), network.keep(right), network.keep(left | right)
    masks = (a & b & out, a & b & ~out, a & ~b, b & ~a)
    axes = tuple(
        (
            (left >> axis.features & 1) - (right >> axis.features & 1),
            *(network.grid(n, subset) for subset in (left, right, left | right)),
        )
        for n, axis in enumerate(network.axes)
    )
    first = (left & -left) < (right & -right)  # which of two equal sides is taken for the features
    leads = tuple((mask.bit_count() > 1, network.prod(mask & -mask)) for mask in masks[2:])  # batch and channels
    return tuple((mask != 0, network.prod(mask)) for mask in masks), leads, axes, first
