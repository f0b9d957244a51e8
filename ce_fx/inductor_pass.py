"""`InductorPass`: the rewrite as a pass of stock Inductor, before autograd; under AOTInductor too.

Importing this module imports Inductor, which takes a second: `ce_fx.InductorPass` is looked up when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

import ce_fx
from ce_fx.handing_on import rewritten_or_untouched
from ce_fx.options import TORCH_COMPILES, Options, refuse
from ce_fx.report import GraphReport, Report
from ce_fx.report.graph import together
from ce_fx.tune.calibrate import all_stored, time_model

_ELSEWHERE = {
    "fold": "a pass runs nothing that could be kept; use torch.compile(model, backend='ce_fx', options={'fold': True})",
    "inner": "the pass is Inductor's",
    "inner_options": "give them to torch.compile(model, options=..)",
    "mode": "give it to torch.compile(model, mode=..)",
    **TORCH_COMPILES,
}


class InductorPass(CustomGraphPass):
    """A pass for Inductor's `pre_grad_custom_pass`.

        torch.compile(model, options={"pre_grad_custom_pass": ce_fx.InductorPass(objective="time")})

    Inductor's caches know it by `uuid`: a second process neither rewrites nor compiles.

    Args:
        **options: those of `optimize` that concern planning; they are copied.

    Raises:
        CeFxError: an option is unknown or bad, or belongs to torch.compile.
    """

    def __init__(self, **options: Any) -> None:
        refuse(options, _ELSEWHERE, "InductorPass")
        self.options = Options.of({**options, "inner": "inductor"})
        self.found: list[GraphReport] = []
        self._uuid: str | None = None

    def __call__(self, graph: Graph) -> None:
        """Rewrite a graph in place; it never raises because of what it holds.

        Its inputs are known by the fake values that Dynamo or export left at them; without these it stays untouched.
        Inductor hands over the bodies of activation checkpoints one by one.
        """
        gm = graph.owning_module
        inputs = [_value(node) for node in graph.find_nodes(op="placeholder")]
        if gm is None or any(value is None for value in inputs):
            return
        self.found.append(rewritten_or_untouched(gm, inputs, self.options, bodies=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> InductorPass:
        """Itself: AOTInductor copies its options, and what is done belongs into the report of the pass it was given."""
        return self

    def report(self) -> Report:
        """What was done to the graphs that the pass has seen in this process; a cached graph is not seen again."""
        whole = together(self.found)
        return Report(whole.layers, "InductorPass", self.options.objective, (), whole.elsewhere, whole.bytes)

    def uuid(self) -> str:
        """What the result depends on besides the graph: versions, options, threads, and what is calibrated here.

        Computed once; by objective "time" the device is calibrated for it, if that has not been done.
        """
        if self._uuid is None:
            if self.options.objective == "time" and self.options.tune is not False:
                device = "cuda" if torch.cuda.is_available() else "cpu"
                time_model(device, measure=True, verbose=self.options.verbose)
            parts = (
                ce_fx.__version__,
                torch.__version__,
                torch.get_num_threads(),
                self.options.to_dict(),
                {key: model.to_dict() for key, model in all_stored().items()},
            )
            self._uuid = hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()
        return self._uuid


def _value(placeholder: Node) -> Any:
    return placeholder.meta.get("example_value", placeholder.meta.get("val"))
