"""ce_fx: a torch.fx pass that finds a better way to evaluate the multilinear stretches of a model.

`fast = ce_fx.optimize(model)`, `torch.compile(model, backend="ce_fx")`, `ce_fx.audit(model, (x,))`,
`ce_fx.conv_einsum("bshw,rt,rs,rh,rw->bthw|hw", x, wt, ws, wh, ww)`.

Importing the package imports none of its modules: what a public name needs is imported when the name is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ce_fx import nn
    from ce_fx.audit import audit
    from ce_fx.capture.export import capture
    from ce_fx.conv_einsum import contract_expression, contract_path, conv_einsum
    from ce_fx.errors import CaptureError, CeFxError, ExpressionError
    from ce_fx.inductor_pass import InductorPass
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

_HOMES = {
    "CaptureError": "ce_fx.errors",
    "CeFxError": "ce_fx.errors",
    "ExpressionError": "ce_fx.errors",
    "InductorPass": "ce_fx.inductor_pass",
    "LayerReport": "ce_fx.report",
    "Report": "ce_fx.report",
    "audit": "ce_fx.audit",
    "capture": "ce_fx.capture.export",
    "contract_expression": "ce_fx.conv_einsum",
    "contract_path": "ce_fx.conv_einsum",
    "conv_einsum": "ce_fx.conv_einsum",
    "graph_modules": "ce_fx.optimize",
    "lift": "ce_fx.lifted",
    "optimize": "ce_fx.optimize",
    "optimize_": "ce_fx.optimize",
    "refresh": "ce_fx.optimize",
    "report": "ce_fx.optimize",
    "restore_": "ce_fx.optimize",
    "rewrite": "ce_fx.rewrite",
}
"""Public name -> the module that defines it."""

_PACKAGES = ("nn",)
"""Packages that are public as a whole: `ce_fx.nn` needs no import of its own."""


if not TYPE_CHECKING:  # type checkers read the imports above, and so see a name that does not exist

    def __getattr__(name: str) -> Any:
        """A public name at its first use; afterwards it is in the module's dict and this is not called."""
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            globals()[name] = value
            return value
        if name in _PACKAGES:
            return import_module(f"ce_fx.{name}")
        raise AttributeError(f"module 'ce_fx' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is, imported yet or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Seven public functions have the name of a module of ours: importing that module must not hide the function.

    The import system sets every module as an attribute of its package. `from ce_fx.audit import audit` would so turn
    `ce_fx.audit` into a module; and whether it had would depend on who imported what, and when.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
