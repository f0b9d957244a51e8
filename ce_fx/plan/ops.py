"""What a cost model sees of one emitted tensor op."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = (
    "mm",
    "bmm",
    "conv1x1",
    "conv",
    "conv_few",
    "depthwise",
    "grouped",
    "grouped_thin",
    "mul",
    "sum",
    "copy",
    "add",
)
"""Kinds of op that run at rates of their own: `conv_few` has at most two input or output channels, `depthwise` one
channel a group, `grouped_thin` at most two; `mul` is a broadcast multiply, `copy` a permute that is made contiguous."""


@dataclass(frozen=True)
class Op:
    """One tensor op: its family and the numbers that decide its time.

    Attributes:
        family: one of `FAMILIES`.
        macs: multiply-adds (0 for sum, copy, add).
        reduce: reduction length for one output element, kernel positions included (K of a GEMM).
        columns: output channels of one group (N); of a matrix product the size of the result's innermost dim; of a copy
            or sum the elements in a row that are read in the order in which they lie in memory.
        rows: output pixels or rows of one batch item (M).
        elements: elements read and written.
    """

    family: str
    macs: int
    reduce: int
    columns: int
    rows: int
    elements: int
