"""Stride, padding and dilation of a layer, as torch's convolutions take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import functional as F

from ce_fx.nn.errors import LayerError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
Given: TypeAlias = int | str | Sequence[int]


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution, one value for each axis.

    Attributes:
        stride, dilation: ints.
        padding: as given, "same", or an int for each axis; what torch's functions take.
        pairs: what is padded on the left and on the right of each axis.
        padding_mode: one of `PADDING_MODES`.
    """

    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    padding_mode: str

    @property
    def none(self) -> tuple[int, ...]:
        """No padding."""
        return tuple(0 for _ in self.pairs)


def make_geometry(
    kernel_size: Sequence[int], *, stride: Given, padding: Given, dilation: Given, padding_mode: str
) -> Geometry:
    """Check a geometry and give every axis its own value.

    Args:
        kernel_size: one int for each axis, none for a linear layer.
        stride: as of `torch.nn.Conv2d`.
        padding: an int, one for each axis, "same" or "valid".
        dilation: as of `torch.nn.Conv2d`.
        padding_mode: one of `PADDING_MODES`.

    Raises:
        LayerError: a value does not fit; the message names it.
    """
    dims = len(kernel_size)
    if padding_mode not in PADDING_MODES:
        raise LayerError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, not {padding_mode!r}")
    if not dims and (stride, padding, dilation, padding_mode) != (1, 0, 1, "zeros"):
        raise LayerError(
            "a string without convolution letters is a linear layer: it has no stride, padding or dilation"
        )
    strides, dilations = _each("stride", stride, dims, 1), _each("dilation", dilation, dims, 1)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise LayerError(f"padding must be an int, one for each axis, 'same' or 'valid', not {padding!r}")
        if padding == "same" and any(s != 1 for s in strides):
            raise LayerError(f"padding='same' needs a stride of 1, as in torch, not {strides}")
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel_size, strict=True)]
        pairs = tuple((r // 2, r - r // 2) for r in reach)
        return Geometry(strides, padding, dilations, pairs, padding_mode)
    paddings = _each("padding", padding, dims, 0)
    return Geometry(strides, paddings, dilations, tuple((p, p) for p in paddings), padding_mode)


def _each(name: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    fits = all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values)
    if len(values) != dims or not fits:
        raise LayerError(f"{name} must be an int of at least {least}, or one for each of {dims} axes, not {value!r}")
    return values


def padded_by_hand(x: Tensor, geometry: Geometry) -> tuple[Tensor, tuple[tuple[int, int], ...], str | tuple[int, ...]]:
    """The input padded in the modes that a convolution cannot do itself, and the padding that is left to do.

    Args:
        x: (.., *spatial).
        geometry: of the layer.

    Returns:
        The input; the padding left, in pairs; and the same as torch's functions take it.
    """
    if geometry.padding_mode == "zeros" or not any(map(any, geometry.pairs)):
        return x, geometry.pairs, geometry.padding
    ends = [side for pair in reversed(geometry.pairs) for side in pair]
    return F.pad(x, ends, mode=geometry.padding_mode), tuple((0, 0) for _ in geometry.pairs), geometry.none
