"""ce_fx: a torch.fx pass that finds a better way to evaluate the multilinear stretches of a model.

`fast = ce_fx.optimize(model)`, `torch.compile(model, backend="ce_fx")`, `ce_fx.audit(model, (x,))`,
`ce_fx.conv_einsum("bshw,rt,rs,rh,rw->bthw|hw", x, wt, ws, wh, ww)`.
"""

from importlib import import_module
from typing import Any

# Packages and modules first: importing one binds its name here, and some names are those of functions.
import ce_fx.capture
import ce_fx.lift
import ce_fx.report  # noqa: F401
from ce_fx.audit import audit
from ce_fx.capture.export import capture
from ce_fx.conv_einsum import contract_expression, contract_path, conv_einsum
from ce_fx.errors import CaptureError, CeFxError, ExpressionError
from ce_fx.lifted import lift
from ce_fx.optimize import graph_modules, optimize, optimize_, refresh, report, restore_
from ce_fx.report import LayerReport, Report
from ce_fx.rewrite import rewrite

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CeFxError",
    "ExpressionError",
    "InductorPass",
    "LayerReport",
    "Report",
    "audit",
    "capture",
    "contract_expression",
    "contract_path",
    "conv_einsum",
    "graph_modules",
    "lift",
    "nn",
    "optimize",
    "optimize_",
    "refresh",
    "report",
    "restore_",
    "rewrite",
]


def __getattr__(name: str) -> Any:
    """What waits until it is asked for: `InductorPass` imports Inductor, which takes as long as torch itself."""
    if name == "InductorPass":
        from ce_fx.inductor_pass import InductorPass

        return InductorPass
    if name == "nn":
        return import_module("ce_fx.nn")
    raise AttributeError(f"module 'ce_fx' has no attribute {name!r}")
