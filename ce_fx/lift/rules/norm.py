"""Batch norm with fixed statistics: a scaling and a shift of every channel."""

from __future__ import annotations

import torch
from torch.fx import Node

from ce_fx.algebra import Expression, scale
from ce_fx.algebra.derived import Derived
from ce_fx.lift.products import add, add_bias, contract
from ce_fx.lift.refusal import Refusal
from ce_fx.lift.registry import Operands, fake_of, lifts

aten = torch.ops.aten


@lifts(aten.batch_norm.default)
def batch_norm(node: Node, operands: Operands) -> Expression | Refusal:
    """`x * r * w - mean * r * w + b` with `r = 1 / sqrt(var + eps)`, by channel; w and b may be absent."""
    x, weight, bias, mean, var, training, _momentum, eps, *_ = node.args
    if training or not isinstance(mean, Node) or not isinstance(var, Node):
        return Refusal("batch norm in training takes its statistics from the batch")
    if not isinstance(eps, float):
        return Refusal("a batch norm whose eps is not a number in the graph")
    if operands.inside(var):
        return Refusal("a batch norm whose variance is computed within the region")
    axes = list(range(fake_of(x).ndim))
    channel = axes[1]
    gains = [operands.derived(Derived("rsqrt", (var,), (eps,)), fake_of(var).shape)]
    shift_gains = [operands.derived(Derived("rsqrt", (var,), (eps,)), fake_of(var).shape)]
    if isinstance(weight, Node):
        gains.append(operands.tensor(weight))
        shift_gains.append(operands.tensor(weight))
    scaled = contract((operands.tensor(x), *gains), (axes, *([channel] for _ in gains)), axes, operands.fresh)
    shift = contract((operands.tensor(mean), *shift_gains), [[0]] * (1 + len(gains)), [0], operands.fresh)
    if isinstance(scaled, Refusal) or isinstance(shift, Refusal):
        return scaled if isinstance(scaled, Refusal) else shift
    shift = scale(shift, -1)
    if isinstance(bias, Node):
        total = add(shift, operands.tensor(bias), operands.fresh)
        if isinstance(total, Refusal):
            return total
        shift = total
    return add_bias(scaled, channel, shift, operands.fresh)
