"""`audit`: what ce_fx would do to a model, and why; the model is left as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from ce_fx.capture.numpy_attrs import undo
from ce_fx.capture.undisturbed import undisturbed
from ce_fx.optimize import _session_of, optimize
from ce_fx.report import Report
from ce_fx.session import uncaptured

_FAKE = "weights or inputs are fake: nothing was run, so times are predicted only and no rewrite was verified"


def audit(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    train: bool | None = None,
    **options: Any,
) -> Report:
    """Report layer by layer what ce_fx finds, what it would change, and what that would gain.

    Weights, statistics, random states, modes, gradients and hooks are afterwards what they were, and no attribute comes
    or goes. No backward is run on the model. The forward is run once: what it and its hooks write to attributes that
    are no buffers (a counter, a list) they write once more.

    Weights and inputs may be fake (`FakeTensorMode`) or on the meta device, for a model that is too large to run.

    Args:
        model: any module.
        args: positional inputs.
        kwargs: keyword inputs.
        train: count forward and backward (True) or forward alone (False); None follows `model.training`.
        **options: those of `optimize`.

    Raises:
        CeFxError: an option is unknown or bad, or the model is no module.
        Exception: what the model raises for these inputs.
    """
    args = (args,) if isinstance(args, Tensor) else args
    fake = _is_fake([*model.parameters(), *model.buffers(), *pytree.tree_leaves((args, kwargs))])
    if fake:
        options = {**options, "tune": False, "verify": False}
    fast = optimize(model, **options)
    training = model.training if train is None else train
    session = _session_of(fast)
    try:
        with _plain_mode(training), undisturbed(fast):
            if training != model.training:  # else a part that is frozen in the other mode stays frozen
                fast.train(training)
            failure = _call(fast, _usable(args, training), _usable(kwargs or {}, training), session.options.fullgraph)
    finally:
        undo(session.plain)
    result = session.report()
    if failure:
        result = replace(result, layers=(*result.layers, uncaptured(failure)), captured=True)
    about = about_of(model, args, kwargs, training)
    notes = (*result.notes, *([_FAKE] if fake else []))
    return replace(result, title=title_of(about), about=about, notes=notes)


def _call(fast: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], fullgraph: bool) -> str | None:
    """Call the model; returns why that failed where it can only be called as written.

    What the model itself raises is raised as the model does it, and not as Dynamo tells it.
    """
    try:
        fast(*args, **kwargs)
        return None
    except Exception as error:
        if fullgraph:  # which asks for an error
            raise
        failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    with torch.compiler.set_stance("force_eager"):
        fast(*args, **kwargs)
    return failure


def about_of(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, training: bool
) -> dict[str, Any]:
    """What is audited, as plain data: model, mode, dtype, device, threads and inputs by their names."""
    tensors = [value for value in [*model.parameters(), *pytree.tree_leaves((args, kwargs))] if _floats(value)]
    kinds = {name: list(dict.fromkeys(str(getattr(one, name)) for one in tensors)) for name in ("dtype", "device")}
    dtype = ", ".join(kind.removeprefix("torch.") for kind in kinds["dtype"]) or "no tensors"
    device = tensors[0].device.type if tensors else "cpu"
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype += f" under autocast to {str(torch.get_autocast_dtype(device)).removeprefix('torch.')}"
    return {
        "model": type(model).__name__,
        "mode": "forward + backward, train" if training else "forward, eval, no grad",
        "dtype": dtype,
        "device": ", ".join(dict.fromkeys(kind.partition(":")[0] for kind in kinds["device"])) or device,
        "threads": torch.get_num_threads(),
        "inputs": _inputs(model, args, kwargs),
    }


def title_of(about: Mapping[str, Any]) -> str:
    """What is audited, in one line."""
    inputs = ", ".join(f"{name}: {shape}" for name, shape in about["inputs"].items())
    where = f"{about['device']} {about['threads']} threads"
    return f"{about['model']}, {about['mode']}, {about['dtype']}, {where}, {inputs or 'no inputs'}"


def _inputs(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> dict[str, str]:
    """The shapes of all tensors among the inputs, by the names of the arguments that they are in."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **(kwargs or {})).arguments
    except (TypeError, ValueError):  # the call will say so, or the signature cannot be read
        bound = {**{f"input {n}": value for n, value in enumerate(args)}, **(kwargs or {})}
    return {
        f"{name}{pytree.keystr(path)}": _shape(value)
        for name, argument in bound.items()
        for path, value in pytree.tree_flatten_with_path(argument)[0]
        if isinstance(value, Tensor)
    }


def _shape(value: Tensor) -> str:
    """Sizes, with the dtype where it is no usual one: "8x3x224x224", "8x10 int64"."""
    sizes = "x".join(map(str, value.shape)) or "scalar"
    return sizes if _floats(value) else f"{sizes} {str(value.dtype).removeprefix('torch.')}"


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


@contextmanager
def _plain_mode(training: bool) -> Iterator[None]:
    """Gradients are recorded or not, whatever the caller is in the middle of, and no dispatch mode is on.

    Under one the model would run as written; a fake mode is found by the tensors that are fake.
    """
    with ExitStack() as stack:
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        if training:
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(training))
        yield


def _usable(inputs: Any, training: bool) -> Any:
    """The inputs; where gradients are recorded, copies of those that were made in inference mode."""
    if not training:
        return inputs
    return pytree.tree_map_only(Tensor, lambda one: one.clone() if one.is_inference() else one, inputs)


def _is_fake(values: Sequence[Any]) -> bool:
    return any(isinstance(value, FakeTensor) or (isinstance(value, Tensor) and value.is_meta) for value in values)
