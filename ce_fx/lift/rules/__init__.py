"""The rules, a module per op family. Importing this package fills `ce_fx.lift.registry.RULES`."""

from ce_fx.lift.rules import blocks, contraction, convolution, kronecker, norm, pointwise, shape, spatial, sums

__all__ = ["blocks", "contraction", "convolution", "kronecker", "norm", "pointwise", "shape", "spatial", "sums"]
