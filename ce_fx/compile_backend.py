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
        options: those of `optimize` but `dynamic` and `fullgraph`, with `inner="inductor"` by default.
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
    _, running = handed_on(gm, example_inputs, chosen)
    return running.call
