"""Indices, windows, terms and expressions: the algebra of multilinear stretches. Knows neither torch nor FX."""

from ce_fx.algebra.expression import (
    Expression,
    Factor,
    Term,
    leaf_expression,
    scale,
    substitute,
    substitute_axes,
    substitute_axis,
)
from ce_fx.algebra.index import Axes, Axis, Index, axis_size, flat
from ce_fx.algebra.window import Tap, Window, compose, is_identity, positions

__all__ = [
    "Axes",
    "Axis",
    "Expression",
    "Factor",
    "Index",
    "Tap",
    "Term",
    "Window",
    "axis_size",
    "compose",
    "flat",
    "is_identity",
    "leaf_expression",
    "positions",
    "scale",
    "substitute",
    "substitute_axes",
    "substitute_axis",
]
