"""`torch.compile(model, backend="ce_fx")`: rewrite, then the inner compiler (Inductor by default)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def backend(
    gm: Any,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The Dynamo backend that the entry-point group `torch_dynamo_backends` names "ce_fx".

    Args:
        gm: Dynamo's graph; it is edited in place where something is gained, else handed on untouched.
        example_inputs: as Dynamo gives them.
        options: those of `optimize` but `dynamic` and `fullgraph`, with `inner="inductor"` by default. They are copied
            when something is compiled for the first time; a change later on changes nothing.
        mode: a mode of the inner compiler.

    Raises:
        CeFxError: an option is unknown or bad, or belongs to torch.compile.
    """
    from ce_fx.handing_on import handed_on
    from ce_fx.inner import check_inner
    from ce_fx.options import TORCH_COMPILES, Options, refuse

    given = options or {}
    refuse(given, TORCH_COMPILES, 'backend "ce_fx"')
    chosen = Options.of({"inner": "inductor", **({"mode": mode} if mode else {}), **given})
    check_inner(chosen)
    if options is not None:
        _keep(options)
    _, running = handed_on(gm, example_inputs, chosen)
    return running.call


def _keep(options: Mapping[str, Any]) -> None:
    """Later compilations get a copy: `torch.compile` hands on the very dict that a user may change meanwhile."""
    import torch
    from torch._dynamo.eval_frame import cached_backends

    for one in list(cached_backends.values()):
        if isinstance(one, torch._TorchCompileWrapper) and one.kwargs.get("options") is options:
            copied = {name: dict(value) if isinstance(value, Mapping) else value for name, value in options.items()}
            one.kwargs["options"] = copied
