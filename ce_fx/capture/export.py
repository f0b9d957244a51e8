"""The second door: one static graph by `torch.export`, for ahead-of-time pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ce_fx.capture.numpy_attrs import make_plain, undo
from ce_fx.errors import CaptureError


def capture(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> GraphModule:
    """One static graph of a model, by non-strict `torch.export`.

    It follows no Python flag and no later change of mode: what the model did on these inputs is what it will do. Its
    parameters and buffers are the model's own.

    Args:
        model: what to capture.
        args: positional inputs.
        kwargs: keyword inputs.
        dynamic_shapes: as in `torch.export.export`.

    Raises:
        CaptureError: export failed; the message is export's first line.
    """
    changed = make_plain(model)
    try:
        program = torch.export.export(
            model, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
        )
        gm = program.module()
    except Exception as error:  # export raises many kinds; all mean that there is no graph
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}: {first} "
            f"Use ce_fx.optimize(model), which needs no single graph."
        ) from error
    finally:
        undo(changed)
    assert isinstance(gm, GraphModule)
    _share_tables(gm, model)
    return gm


def _share_tables(gm: GraphModule, model: torch.nn.Module) -> None:
    """Look parameters and buffers up where the model does, so that replaced ones (`assign=True`) are followed.

    A module of the graph with a tensor of its own, such as a lifted constant, keeps its table.
    """
    originals = dict(model.named_modules(remove_duplicate=False))
    for path, module in gm.named_modules(remove_duplicate=False):
        for table in ("_parameters", "_buffers"):
            shared = vars(originals[path])[table] if path in originals else {}
            if vars(module)[table].keys() <= shared.keys():
                module.__dict__[table] = shared
