"""Factorised layers as strings, and dense models made of them.

`ConvEinsum` is a convolution or linear layer from any conv_einsum string, or from a form by name; `tensorize` puts such
layers in the place of a model's dense ones, and `densify` takes them back.
"""

from ce_fx.nn.decompose import decompose_
from ce_fx.nn.errors import LayerError, RateError
from ce_fx.nn.forms import FORMS, form_string
from ce_fx.nn.layer import ConvEinsum
from ce_fx.nn.ranks import balanced_factors
from ce_fx.nn.report import Tensorized, TensorizeReport
from ce_fx.nn.tensorize import densify, tensorize

__all__ = [
    "FORMS",
    "ConvEinsum",
    "LayerError",
    "RateError",
    "TensorizeReport",
    "Tensorized",
    "balanced_factors",
    "decompose_",
    "densify",
    "form_string",
    "tensorize",
]
