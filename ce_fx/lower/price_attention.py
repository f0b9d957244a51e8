"""What attention costs, alone and with its projections in one op."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ce_fx.plan.ops import Op


def attention_ops(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> tuple[Op, ...]:
    """Queries by keys, and what their softmax weighs: [b, q, e] @ [b, e, k], then [b, q, k] @ [b, k, v].

    Taken to be fused: the scores, [b, q, k], stay in the cache. A causal mask is not taken off, as torch's own count
    does not.
    """
    (*batch, q, e), (*_, k, _), (*_, v) = query, key, value
    scores = prod(batch) * q * k
    first = Op("bmm", scores * e, e, k, q, prod(query) + prod(key))
    return (first, Op("bmm", scores * v, k, v, q, prod(value) + prod(batch) * q * v))


def projected_attention_ops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], heads: int, *widths: int
) -> tuple[Op, ...]:
    """Multi-head attention with its four projections, and the two layers of a feed-forward network of each width.

    Args:
        query: a shape, (batch, length, width) or (length, width).
        key: the same.
        value: the same; all are of one width.
        heads: into which the width is split.
        *widths: of the hidden layers behind it.
    """
    width = query[-1]
    split = [(*shape[:-2], heads, shape[-2], width // heads) for shape in (query, key, value)]
    projections = [_linear(shape, width, width) for shape in (query, key, value, query)]
    layers = [_linear(query, *pair) for hidden in widths for pair in ((width, hidden), (hidden, width))]
    return (*projections, *attention_ops(*split), *layers)


def _linear(shape: Sequence[int], ins: int, outs: int) -> Op:
    rows = prod(shape[:-1])
    return Op("mm", rows * ins * outs, ins, outs, rows, rows * (ins + outs) + ins * outs)
