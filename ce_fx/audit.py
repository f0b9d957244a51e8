"""`audit`: what ce_fx would do to a model, and why; the model is left as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ce_fx.capture.numpy_attrs import undo
from ce_fx.capture.undisturbed import undisturbed
from ce_fx.optimize import _session_of, optimize
from ce_fx.report import Report


def audit(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    train: bool | None = None,
    **options: Any,
) -> Report:
    """Report layer by layer what ce_fx finds, what it would change, and what that would gain.

    Weights, statistics, random states, modes, gradients, hooks and attributes are afterwards what they were.

    Args:
        model: any module.
        args: positional inputs.
        kwargs: keyword inputs.
        train: count forward and backward (True) or forward alone (False); None follows `model.training`.
        **options: those of `optimize`.

    Raises:
        CeFxError: an option is unknown or bad, or the model is no module.
    """
    fast = optimize(model, **options)
    training = model.training if train is None else train
    try:
        with undisturbed(fast), torch.set_grad_enabled(training):
            if training != model.training:  # else a part that is frozen in the other mode stays frozen
                fast.train(training)
            fast(*args, **(kwargs or {}))
    finally:
        undo(_session_of(fast).plain)
    result = _session_of(fast).report()
    return replace(result, title=_title(model, args, training))


def _title(model: torch.nn.Module, args: Sequence[Any], training: bool) -> str:
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    shapes = ", ".join("x".join(map(str, t.shape)) for t in tensors)
    kind = f"{str(tensors[0].dtype).removeprefix('torch.')}, {tensors[0].device.type}" if tensors else "no tensors"
    what = "forward + backward, train" if training else "forward, eval, no grad"
    return f"{type(model).__name__}, {what}, {kind} {torch.get_num_threads()} threads, inputs: {shapes}"
