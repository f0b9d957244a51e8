"""How often the backward of an ATen op multiplies."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ce_fx.lower.price import CONVOLUTIONS, TRANSPOSED

aten = torch.ops.aten

_ADDED: dict[Any, int] = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED, aten.convolution.default, aten.linear.default), 2),
    **dict.fromkeys(
        (
            aten.addmm.default,
            aten.baddbmm.default,
            aten.addmv.default,
            aten.addbmm.default,
            aten.addr.default,
            aten.addcmul.default,
        ),
        0,
    ),
    aten.bilinear.default: 3,
    aten.scaled_dot_product_attention.default: 3,
}
"""The place of the argument that is added to the products of an op."""


def gradients_of(node: Node) -> int:
    """How many products the backward of each product of an ATen node takes: one for each factor that needs a gradient.

    What is added to a product, as a bias is, gets its gradient by a sum; of more than two factors, as `einsum` takes,
    every step still has two.
    """
    added = _ADDED.get(node.target)
    factors = [n for place, arg in enumerate(node.args) if place != added for n in _nodes(arg)]
    return min(2, sum(bool(n.meta.get("needs_grad", False)) for n in factors))


def _nodes(arg: Any) -> list[Node]:
    if isinstance(arg, (list, tuple)):
        return [node for one in arg for node in _nodes(one)]
    return [arg] if isinstance(arg, Node) else []
