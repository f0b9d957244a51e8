"""What torch's own switches show of a rewrite: nothing here sets up logging, folders or traces.

TORCH_LOGS="+ce_fx"          one line a graph, and its report, by torch's handlers
TORCH_COMPILE_DEBUG=1        graph before, graph after and report, in torch's debug folder
TORCH_TRACE=<folder>         the same three as artifacts, which tlparse shows
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
from torch._logging import trace_structured  # type: ignore[attr-defined]
from torch.fx import GraphModule

from ce_fx.report import GraphReport, Report

log = logging.getLogger(__name__)

_NUMBERS = count()


class Trace:
    """One graph on its way through the rewrite.

    Args:
        gm: the graph, as it is before.
        objective: what is minimised.
    """

    def __init__(self, gm: GraphModule, objective: str) -> None:
        self.gm = gm
        self.objective = objective
        self.folder = _folder()
        self._show("graph_before", self._graph)

    def ended(self, found: GraphReport) -> None:
        """The graph is now as it will run, and this was decided."""
        report = Report(found.layers, "", self.objective, (), found.elsewhere, found.bytes)
        self._show("graph_after", self._graph)
        self._show("report", lambda: report.to_text(plans=True, width=120))
        log.info("%s", report.summary())
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", report.to_text(width=120))

    def _graph(self) -> str:
        return self.gm.print_readable(print_output=False)

    def _show(self, name: str, text: Callable[[], str]) -> None:
        """Text for the trace and for the debug folder; it is made where one of them is on. Nothing may fail for it."""

        def payload() -> str:
            try:
                return text()
            except Exception as error:
                return f"cannot be printed: {type(error).__name__}: {error}"

        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": f"ce_fx_{name}", "encoding": "string"},
            payload_fn=payload,
            expect_trace_id=False,
        )
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{name}.txt").write_text(payload(), encoding="utf-8")
        except OSError as error:
            log.warning("the debug folder cannot be written to: %s", error)


def _folder() -> Path | None:
    """Where torch keeps what it writes for debugging, a folder for each graph; None where that is off."""
    if os.environ.get("TORCH_COMPILE_DEBUG", "0") != "1":  # as Dynamo asks, at the same time
        return None
    compile_id = torch._guards.CompileContext.current_compile_id()
    name = f"{next(_NUMBERS)}" if compile_id is None else f"{next(_NUMBERS)}_{str(compile_id).replace('/', '_')}"
    return Path(torch._dynamo.utils.get_debug_dir()) / "ce_fx" / f"graph_{name}"
