"""What the backward of an op reads: a write in place to that, later, is an error of autograd's."""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from ce_fx.capture.reading import Reading

_FACTORS = (
    dict.fromkeys(("mul", "mm", "bmm"), (0, 2))
    | dict.fromkeys(("addmm", "baddbmm", "addcmul"), (1, 3))
    | dict.fromkeys([f"conv{transposed}{n}d" for n in (1, 2, 3) for transposed in ("", "_transpose")], (0, 2))
)
"""By the names of ATen ops that save what they multiply as it is given, which arguments that are.

Others make it of further ops (`einsum`, `matmul`, `tensordot`, `linear`), which may save a sum, a copy or a product of
two operands instead.
"""


def saves(op: Node, storage: object) -> bool:
    """Whether the backward of an op is known to read a tensor: it is multiplied by another that needs a gradient."""
    first, last = _FACTORS.get(getattr(op.target, "_opname", ""), (0, 0))
    operands = operands_of(op.args[first:last])
    if any(n.meta["val"].dtype != op.meta["val"].dtype for n in operands):
        return False  # autocast saves a copy
    here = [Reading.storage(n.meta["val"]) == storage for n in operands]
    return any(here) and any(n.meta.get("needs_grad") for n, mine in zip(operands, here, strict=True) if not mine)


def operands_of(arguments: Any) -> list[Node]:
    """The nodes in some arguments, each as often as it stands there."""
    found: list[Node] = []

    def visit(operand: Node) -> Node:
        found.append(operand)
        return operand

    map_arg(arguments, visit)
    return found
