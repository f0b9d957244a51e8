"""Orders of evaluation of one expression side by side, as text: what `ce-fx explain` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from ce_fx.algebra.parser import ParsedExpression
from ce_fx.cli.drawing import drawn
from ce_fx.errors import ExpressionError
from ce_fx.plan.modes import Mode
from ce_fx.plan.network import Network, Operand
from ce_fx.plan.ops import Op
from ce_fx.plan.path_info import PathInfo, path_info
from ce_fx.plan.plan import Plan, PlanError
from ce_fx.plan.planner import Objective, make_plan, plan_of, written_tree
from ce_fx.plan.time_model import TimeModel
from ce_fx.plan.tree import Tree, splits_of, step_of
from ce_fx.plan.ways import best_ways, ops_of_way, ways_of
from ce_fx.report.units import seconds as in_words
from ce_fx.report.units import si

_FEW = 6  # kernels of which all orders are tried: 945 trees


@dataclass(frozen=True)
class Order:
    """One order with its costs.

    Attributes:
        name: what it is called in the table.
        plan: the order.
        flops: multiply-adds counted as 2; of forward and backward in mode "train".
        seconds: predicted, of the same.
    """

    name: str
    plan: Plan
    flops: int
    seconds: float


def compared(
    parsed: ParsedExpression, model: TimeModel, objective: Objective, optimize: str = "auto", train: bool = False
) -> str:
    """The planned order as a table and a drawing, and beside it left to right, greedy and dense.

    Args:
        parsed: the expression with its sizes.
        model: predicts times.
        objective: what the plan minimises.
        optimize: how it is searched, as in `conv_einsum`.
        train: count forward and backward, every operand needing a gradient.

    Raises:
        ExpressionError: no plan can be made as asked.
    """
    network = Network(parsed.term, parsed.output, [Operand(needs_grad=train)] * len(parsed.term.factors))
    mode: Mode = "train" if train else "forward"
    try:
        plan = make_plan(network, objective=objective, mode=mode, optimize=optimize, time_model=model)
        greedy = make_plan(network, objective=objective, mode=mode, optimize="greedy", time_model=model)
    except PlanError as error:
        raise ExpressionError(str(error)) from None
    trees = {"planned": plan.tree, "left to right": written_tree(network.n), "greedy": greedy.tree}
    dense = dense_tree(network)
    if dense is not None:
        trees["dense"] = dense
    orders = [_order(name, network, tree, objective, mode, model) for name, tree in trees.items()]
    info = path_info(plan)
    if network.n == 1:
        return "\n".join([info.eq, *_operands(info), "one operand: there is nothing to put in order"])
    method = "the only order" if network.n == 2 else _METHODS.get(plan.method, plan.method)
    scope = "forward + backward" if train else "forward"
    return "\n".join(
        [
            info.eq,
            *_operands(info),
            "",
            f"plan for {objective} ({method}), {scope}; 1 multiply-add = 2 FLOPs",
            _steps(network, plan, info, mode, model),
            "",
            drawn(plan, info),
            "",
            _table(orders, model.itemsize),
            *([_DENSE] if dense is not None else []),
        ]
    )


_METHODS = {
    "optimal": "the best of all orders",
    "connected": "the best of the orders without outer products",
    "greedy": "the best that was found",
    "written": "as written; no order that was searched is better",
}

_DENSE = "dense: the kernels are put together first, by the fewest FLOPs, and applied to the features once"


def dense_tree(network: Network) -> Tree | None:
    """All kernels put together first, in the order of fewest multiply-adds, then applied to the features.

    The features are the operand that is convolved, or without convolution letters the largest one. None where two
    operands are convolved, or there are fewer than two kernels.
    """
    features = {axis.features for axis in network.axes} or {max(range(network.n), key=lambda n: network.size(1 << n))}
    kernels = [n for n in range(network.n) if n not in features]
    if len(features) > 1 or len(kernels) < 2:
        return None
    (image,) = features

    def flops(tree: Tree) -> int:
        return sum(network.flops(left, right) for left, right in splits_of(tree))

    return image, min(_trees(kernels), key=flops)


def _trees(leaves: Sequence[int]) -> Iterator[Tree]:
    """All binary trees over some leaves; left to right alone where they are many."""
    if len(leaves) == 1:
        yield leaves[0]
    elif len(leaves) > _FEW:
        tree: Tree = leaves[0]
        for leaf in leaves[1:]:
            tree = (tree, leaf)
        yield tree
    else:
        for mask in range(1, 1 << (len(leaves) - 1)):  # the last leaf stays on the right: each pair of halves once
            left = [leaf for n, leaf in enumerate(leaves) if mask >> n & 1]
            right = [leaf for n, leaf in enumerate(leaves) if not mask >> n & 1]
            yield from ((a, b) for a in _trees(left) for b in _trees(right))


def _order(name: str, network: Network, tree: Tree, goal: Objective, mode: Mode, model: TimeModel) -> Order:
    """An order as it would run: by objective "time" each step in its fastest way, else in that of its kind."""
    ways = best_ways(network, tree, mode, model) if goal == "time" else {}
    plan = plan_of(network, tree, name, "flops", mode, model, ways)
    seconds = sum(seconds_of(network, plan, pair, mode, model) for pair in splits_of(tree))
    return Order(name, plan, 2 * int(plan.cost), seconds)


def _ops(network: Network, plan: Plan, pair: tuple[int, int]) -> tuple[Op, ...]:
    step = step_of(network, *pair)
    return ops_of_way(step, network, plan.ways.get(sum(pair)) or ways_of(step, network)[0])


def seconds_of(network: Network, plan: Plan, pair: tuple[int, int], mode: Mode, model: TimeModel) -> float:
    """Predicted seconds of one step of a plan; with the backward in mode "train"."""
    grad = network.differentiable if mode == "train" else 0
    left, right = pair
    return model.seconds(_ops(network, plan, pair), bool(left & grad) + bool(right & grad))


def _operands(info: PathInfo) -> list[str]:
    terms = info.input_subscripts.split(",")
    width = max(map(len, terms))
    return [
        f"  operand {number}  {term:<{width}}  {'x'.join(map(str, shape)) or 'scalar'}"
        for number, (term, shape) in enumerate(zip(terms, info.shapes, strict=True))
    ]


def _steps(network: Network, plan: Plan, info: PathInfo, mode: Mode, model: TimeModel) -> str:
    rows = []
    for number, (told, pair) in enumerate(zip(info.steps, splits_of(plan.tree), strict=False), 1):
        way = plan.ways.get(sum(pair))
        kinds = " + ".join(dict.fromkeys(_KINDS.get(op.family, op.family) for op in _ops(network, plan, pair)))
        memory = f"{si(told.size * model.itemsize, 3)}B"
        named = f"{kinds} ({way})" if way else kinds
        seconds = seconds_of(network, plan, pair, mode, model)
        rows.append([number, told.string, named, si(2 * told.flops), memory, in_words(seconds)])
    columns = ["step", "joins", "as", "FLOPs, forward", "result", "predicted"]
    align = ("right", "left", "left", "right", "right", "right")
    return tabulate(rows, headers=columns, tablefmt="plain", colalign=align, disable_numparse=True)


_KINDS = {
    "mm": "matmul",
    "bmm": "batched matmul",
    "mul": "broadcast product",
    "conv": "convolution",
    "conv1x1": "1x1 convolution",
    "conv_few": "convolution of one or two channels",
    "grouped": "grouped convolution",
    "grouped_thin": "thin grouped convolution",
    "depthwise": "depthwise convolution",
}


def _table(orders: Sequence[Order], itemsize: int) -> str:
    first = orders[0]
    rows = [
        [
            order.name,
            si(order.flops),
            f"{order.flops / max(1, first.flops):.3g}x",
            f"{si(order.plan.largest * itemsize, 3)}B",
            in_words(order.seconds),
            f"{order.seconds / first.seconds:.3g}x" if first.seconds else "-",
            "same as planned" if order is not first and order.plan.tree == first.plan.tree else "",
        ]
        for order in orders
    ]
    columns = ["order", "FLOPs", "", "largest intermediate", "predicted time", "", ""]
    align = ("left", "right", "right", "right", "right", "right", "left")
    return tabulate(rows, headers=columns, tablefmt="plain", colalign=align, disable_numparse=True)
