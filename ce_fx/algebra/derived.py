"""Leaves that the graph does not hold but that follow from it: constants, and functions of single weights.

An eval batch norm is linear in `1 / sqrt(variance + eps)`, a resize is a matrix; both are leaves like any other once
somebody computes them. A region names what it needs, `ce_fx.lower.derive` emits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Derived:
    """A leaf to be computed.

    Attributes:
        kind: what it is; a key of `ce_fx.lower.derive.KINDS`.
        sources: what it is computed from: ATen nodes while a region grows, numbers of its leaves once it is whole.
        params: further arguments, plain numbers and strings.
    """

    kind: str
    sources: tuple[Any, ...] = ()
    params: tuple[Any, ...] = ()
