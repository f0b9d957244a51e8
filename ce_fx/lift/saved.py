"""What the backward of an op reads: a write in place to that, later, is an error of autograd's."""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from ce_fx.capture.reading import Reading

_ADDITIVE = {"add", "add_", "sub", "sub_", "rsub", "cat", "concat", "stack"}
"""Names of ATen ops of several tensors whose backward reads none of them."""


_FACTORS = {"addmm": (1, 3), "baddbmm": (1, 3), "addcmul": (1, 3), "linear": (0, 2)} | dict.fromkeys(
    [f"conv{transposed}{n}d" for n in (1, 2, 3) for transposed in ("", "_transpose")], (0, 2)
)
"""Which arguments are multiplied, by the names of ATen ops that also add one."""


def saves(op: Node, storage: object) -> bool:
    """Whether the backward of an op reads a tensor: it is multiplied by another one that needs a gradient.

    Of three factors nothing is known: an einsum multiplies two of them first, and may read their product only.
    """
    name = getattr(op.target, "_opname", "")
    first, last = _FACTORS.get(name, (0, None))
    operands = [] if name in _ADDITIVE else operands_of(op.args[first:last])
    if len(operands) > 2:
        return False
    here = [Reading.storage(n.meta.get("val")) == storage for n in operands]
    return any(here) and any(n.meta.get("needs_grad") for n, mine in zip(operands, here, strict=True) if not mine)


def operands_of(arguments: Any) -> list[Node]:
    """The nodes in some arguments, each as often as it stands there."""
    found: list[Node] = []

    def visit(operand: Node) -> Node:
        found.append(operand)
        return operand

    map_arg(arguments, visit)
    return found
