"""A plan as a drawing of lines: the result at the top, what it is made of below."""

from __future__ import annotations

from ce_fx.plan.path_info import PathInfo
from ce_fx.plan.plan import Plan
from ce_fx.plan.tree import Tree, splits_of, subset_of


def drawn(plan: Plan, info: PathInfo) -> str:
    """The tree of a plan, one line for each operand and each step.

        bthw                step 2
        |-- brhw            step 1
        |   |-- bshw        operand 0, 8x64x56x56
        |   `-- rs          operand 2, 16x64
        `-- rt              operand 1, 16x64

    Args:
        plan: the plan.
        info: the same plan in words.
    """
    terms = info.input_subscripts.split(",")
    labels = {1 << n: (term, _operand(n, info.shapes[n])) for n, term in enumerate(terms)}
    for number, (step, pair) in enumerate(zip(info.steps, splits_of(plan.tree), strict=False), 1):
        labels[sum(pair)] = (step.string.partition("->")[2].partition("|")[0], f"step {number}")
    lines = [("", *labels[subset_of(plan.tree)]), *_below(plan.tree, "", labels)]
    width = max(len(indent + term) for indent, term, _ in lines)
    return "\n".join(f"{indent + term:<{width}}  {note}" for indent, term, note in lines)


def _operand(number: int, shape: tuple[int, ...]) -> str:
    return f"operand {number}, {'x'.join(map(str, shape)) or 'scalar'}"


def _below(tree: Tree, indent: str, labels: dict[int, tuple[str, str]]) -> list[tuple[str, str, str]]:
    if isinstance(tree, int):
        return []
    left, right = tree
    return [
        (f"{indent}├── ", *labels[subset_of(left)]),
        *_below(left, f"{indent}│   ", labels),
        (f"{indent}└── ", *labels[subset_of(right)]),
        *_below(right, f"{indent}    ", labels),
    ]
