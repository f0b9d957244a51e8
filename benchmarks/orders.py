"""Orders that an expert would write by hand over a layer's own factors, in plain torch.

Each takes the layer and x and gives what the layer gives. A tensorly-torch convolution here is 3x3 with padding 1 and
no bias; its stride is 1, or 2 for those that whole networks use (`cp_merged`, `tucker_core`, `tt_strips`).

Letters: b batch, s and t input and output channels, h and w pixels or kernel rows and columns, ranks r, u, v, q.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
Bind = Callable[[nn.Module], Run]
"""Given a layer, what to call; what is set up once (a dense kernel) is set up here."""


def over(order: Callable[[Any, Tensor], Tensor]) -> Bind:
    """A function of layer and x, given the layer first."""
    return lambda layer: partial(order, layer)


def factors(layer: Any) -> list[Tensor]:
    """The factors of a tensorly-torch layer."""
    return list(layer.weight.factors)


def stride(layer: Any) -> int:
    """The stride of a tensorly-torch convolution, which is the same on both axes."""
    return int(next(iter(layer.stride)))


def conv1x1(x: Tensor, matrix: Tensor) -> Tensor:
    """The 1x1 convolution of x (b, s, h, w) with a matrix (t, s)."""
    return F.conv2d(x, matrix[:, :, None, None])


def matmul1x1(x: Tensor, matrix: Tensor) -> Tensor:
    """The same as `conv1x1`, as one batched matrix product."""
    return torch.matmul(matrix, x.flatten(2)).unflatten(2, x.shape[2:])


# CP: sum_r weights_r t_r s_r h_r w_r; factors T (t, r), S (s, r), H (3, r), W (3, r).


def cp_strips(layer: Any, x: Tensor) -> Tensor:
    """1x1, depthwise 3x1, depthwise 1x3, 1x1, without tensorly's detours."""
    t, s, h, w = factors(layer)
    y = conv1x1(x, s.t())
    y = F.conv2d(y, h.t()[:, None, :, None], padding=(1, 0), groups=h.shape[1])
    y = F.conv2d(y, w.t()[:, None, None, :], padding=(0, 1), groups=h.shape[1])
    return conv1x1(y, t * layer.weight.weights)


def _depthwise(layer: Any) -> Tensor:
    """Both strips and the weights as one kernel (r, 1, 3, 3)."""
    _, _, h, w = factors(layer)
    return (h.t()[:, :, None] * (w * layer.weight.weights).t()[:, None, :])[:, None]


def cp_merged(layer: Any, x: Tensor) -> Tensor:
    """1x1, one depthwise 3x3, 1x1."""
    t, s, h, _ = factors(layer)
    y = F.conv2d(conv1x1(x, s.t()), _depthwise(layer), stride=stride(layer), padding=1, groups=h.shape[1])
    return conv1x1(y, t)


def cp_merged_matmul(layer: Any, x: Tensor) -> Tensor:
    """`cp_merged`, its 1x1 convolutions as matrix products."""
    t, s, h, _ = factors(layer)
    y = F.conv2d(matmul1x1(x, s.t()), _depthwise(layer), padding=1, groups=h.shape[1])
    return matmul1x1(y, t)


def cp_merged_channels_last(layer: Any, x: Tensor) -> Tensor:
    """`cp_merged` in channels_last, the result in x's order."""
    return cp_merged(layer, x.contiguous(memory_format=torch.channels_last)).contiguous()


def cp_rebuilt(layer: Any, x: Tensor) -> Tensor:
    """The dense kernel in two products, then one convolution."""
    t, s, h, _ = factors(layer)
    left = (t[:, None, :] * s).flatten(0, 1)
    kernel = left @ _depthwise(layer).flatten(1)
    return F.conv2d(x, kernel.view(t.shape[0], s.shape[0], 3, 3), padding=1)


# Tucker: core (v, u, p, q); factors T (t, v), S (s, u), H (3, p), W (3, q).


def _core(layer: Any) -> Tensor:
    """The core with both spatial factors: (v, u, 3, 3)."""
    _, _, h, w = factors(layer)
    core = layer.weight.core
    return torch.matmul(torch.matmul(h, core), w.t()) if h.shape[1] > 1 else core * (h @ w.t())


def tucker_core(layer: Any, x: Tensor) -> Tensor:
    """1x1, 3x3 on the core's channels, 1x1."""
    t, s, _, _ = factors(layer)
    return conv1x1(F.conv2d(conv1x1(x, s.t()), _core(layer), stride=stride(layer), padding=1), t)


def tucker_core_matmul(layer: Any, x: Tensor) -> Tensor:
    """`tucker_core`, its 1x1 convolutions as matrix products."""
    t, s, _, _ = factors(layer)
    return matmul1x1(F.conv2d(matmul1x1(x, s.t()), _core(layer), padding=1), t)


def tucker_core_channels_last(layer: Any, x: Tensor) -> Tensor:
    """`tucker_core` in channels_last, the result in x's order."""
    return tucker_core(layer, x.contiguous(memory_format=torch.channels_last)).contiguous()


def tucker_separable(layer: Any, x: Tensor) -> Tensor:
    """1x1 down, a grouped 3x3 for each pair of spatial ranks, the core as 1x1, 1x1 up."""
    t, s, h, w = factors(layer)
    core, u = layer.weight.core, s.shape[1]
    spatial = (h.t()[:, None, :, None] * w.t()[None, :, None, :]).flatten(0, 1)  # (p q, 3, 3)
    y = F.conv2d(conv1x1(x, s.t()), spatial.repeat(u, 1, 1)[:, None], padding=1, groups=u)
    return conv1x1(conv1x1(y, core.flatten(1)), t)


def tucker_core_in(layer: Any, x: Tensor) -> Tensor:
    """3x3 with the input factor in it, 1x1."""
    t, s, _, _ = factors(layer)
    kernel = torch.einsum("vuhw,su->vshw", _core(layer), s)
    return conv1x1(F.conv2d(x, kernel, padding=1), t)


def tucker_core_out(layer: Any, x: Tensor) -> Tensor:
    """1x1, 3x3 with the output factor in it."""
    t, s, _, _ = factors(layer)
    kernel = torch.einsum("vuhw,tv->tuhw", _core(layer), t)
    return F.conv2d(conv1x1(x, s.t()), kernel, padding=1)


def tucker_rebuilt(layer: Any, x: Tensor) -> Tensor:
    """The dense kernel, then one convolution."""
    t, s, _, _ = factors(layer)
    kernel = torch.einsum("vuhw,su->vshw", _core(layer), s)
    return F.conv2d(x, torch.einsum("vshw,tv->tshw", kernel, t), padding=1)


# TT: A (1, s, r), B (r, 3, u) for rows, C (u, 3, v) for columns, D (v, t, 1).


def _rows(layer: Any) -> Tensor:
    """A.B as a kernel (u, s, 3, 1)."""
    a, b, _, _ = factors(layer)
    return torch.matmul(a[0], b.flatten(1)).view(-1, 3, b.shape[2]).permute(2, 0, 1)[..., None]


def _columns(layer: Any) -> Tensor:
    """C.D as a kernel (t, u, 1, 3)."""
    _, _, c, d = factors(layer)
    return torch.matmul(c, d[..., 0]).permute(2, 0, 1)[:, :, None, :]


def tt_strips(layer: Any, x: Tensor) -> Tensor:
    """One 3x1 convolution with A.B, one 1x3 with C.D."""
    n = stride(layer)
    y = F.conv2d(x, _rows(layer), stride=(n, 1), padding=(1, 0))
    return F.conv2d(y, _columns(layer), stride=(1, n), padding=(0, 1))


def tt_strips_channels_last(layer: Any, x: Tensor) -> Tensor:
    """`tt_strips` in channels_last, the result in x's order."""
    return tt_strips(layer, x.contiguous(memory_format=torch.channels_last)).contiguous()


def tt_strips_dense_kernels(layer: Any, x: Tensor) -> Tensor:
    """`tt_strips` with kernels copied into dense memory first."""
    y = F.conv2d(x, _rows(layer).contiguous(), padding=(1, 0))
    return F.conv2d(y, _columns(layer).contiguous(), padding=(0, 1))


def tt_taps(layer: Any, x: Tensor) -> Tensor:
    """A.B as one matrix product over all taps and a sum of shifts, C.D as shifts and one matrix product."""
    rows, columns = _rows(layer), _columns(layer)
    u, s = rows.shape[:2]
    n, m = x.shape[2:]
    y = matmul1x1(x, rows.permute(2, 0, 1, 3).reshape(3 * u, s)).unflatten(1, (3, u))
    y = F.pad(y, (1, 1, 1, 1))
    y = y[:, 0, :, :n] + y[:, 1, :, 1 : n + 1] + y[:, 2, :, 2:]
    y = torch.cat([y[..., k : k + m] for k in range(3)], 1)
    return matmul1x1(y, columns.permute(0, 3, 1, 2).reshape(-1, 3 * u))


def tt_rows_merged(layer: Any, x: Tensor) -> Tensor:
    """3x1 with A.B, 1x3 with C, 1x1 with D."""
    _, _, c, d = factors(layer)
    y = F.conv2d(F.conv2d(x, _rows(layer), padding=(1, 0)), c.permute(2, 0, 1)[:, :, None, :], padding=(0, 1))
    return conv1x1(y, d[..., 0].t())


def tt_columns_merged(layer: Any, x: Tensor) -> Tensor:
    """1x1 with A, 3x1 with B, 1x3 with C.D."""
    a, b, _, _ = factors(layer)
    y = F.conv2d(conv1x1(x, a[0].t()), b.permute(2, 0, 1)[..., None], padding=(1, 0))
    return F.conv2d(y, _columns(layer), padding=(0, 1))


def tt_chain(layer: Any, x: Tensor) -> Tensor:
    """The four convolutions one after the other, without tensorly's detours."""
    a, b, c, d = factors(layer)
    y = F.conv2d(conv1x1(x, a[0].t()), b.permute(2, 0, 1)[..., None], padding=(1, 0))
    return conv1x1(F.conv2d(y, c.permute(2, 0, 1)[:, :, None, :], padding=(0, 1)), d[..., 0].t())


def tt_rebuilt(layer: Any, x: Tensor) -> Tensor:
    """The dense kernel (A.B).(C.D), then one convolution."""
    kernel = torch.einsum("ush,tuw->tshw", _rows(layer)[..., 0], _columns(layer)[:, :, 0])
    return F.conv2d(x, kernel, padding=1)


CONV_ORDERS: dict[str, dict[str, Bind]] = {
    "cp": {
        "strips": over(cp_strips),
        "merged": over(cp_merged),
        "merged, matmul": over(cp_merged_matmul),
        "merged, channels_last": over(cp_merged_channels_last),
        "rebuilt": over(cp_rebuilt),
    },
    "tucker": {
        "core": over(tucker_core),
        "core, matmul": over(tucker_core_matmul),
        "core, channels_last": over(tucker_core_channels_last),
        "separable": over(tucker_separable),
        "core with in": over(tucker_core_in),
        "core with out": over(tucker_core_out),
        "rebuilt": over(tucker_rebuilt),
    },
    "tt": {
        "strips": over(tt_strips),
        "strips, dense kernels": over(tt_strips_dense_kernels),
        "strips, channels_last": over(tt_strips_channels_last),
        "taps": over(tt_taps),
        "rows merged": over(tt_rows_merged),
        "columns merged": over(tt_columns_merged),
        "chain": over(tt_chain),
        "rebuilt": over(tt_rebuilt),
    },
}


def conv_dense(layer: Any) -> Run:
    """The convolution with a kernel that was built once: what a dense layer of that size takes."""
    with torch.no_grad():
        kernel = layer.weight.to_tensor()
        kernel = kernel.movedim(-1, 0).contiguous() if layer.factorization.lower() == "tt" else kernel.contiguous()
    return lambda x: F.conv2d(x, kernel, padding=1)
