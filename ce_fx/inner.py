"""What runs a rewritten graph: plain FX execution, or any registered Dynamo backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint, noop_context_fn

from ce_fx.lower.recompute import may_stop
from ce_fx.options import OptionError, Options
from ce_fx.tune.runs import Inner


def check_inner(options: Options) -> None:
    """Look the inner backend up before anything runs, and Inductor's mode.

    Raises:
        OptionError: no backend has that name, or Inductor no such mode; the message names the nearest.
    """
    inner = options.inner
    if callable(inner) or inner == "eager":
        return
    if inner == "inductor" and options.mode:
        from torch._inductor import list_mode_options

        modes = list(list_mode_options())
        if options.mode not in modes:
            near = get_close_matches(options.mode, modes, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the modes are {', '.join(modes)}"
            raise OptionError(f"mode must be one of Inductor's, not {options.mode!r}: {hint}")
    from torch._dynamo.backends.registry import list_backends, lookup_backend
    from torch._dynamo.exc import InvalidBackend

    try:
        lookup_backend(inner)
    except InvalidBackend as error:
        known = list_backends(exclude_tags=())
        near = get_close_matches(inner, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the backends are {', '.join(known)}"
        raise OptionError(f"inner must be a backend that torch.compile knows, not {inner!r}: {hint}") from error


def judge(options: Options, device: torch.device, convolves: bool) -> Inner | None:
    """What runs a region, as something to measure for and through; None for plain FX execution.

    On CPU Inductor stores the images of a graph with a convolution in channels last (`decide_layout_opt` in
    torch/_inductor/graph.py): kernels that first bring them into that format by copies would be timed with copies that
    it does not make.
    """
    if options.inner == "eager":
        return None
    name = options.inner if isinstance(options.inner, str) else "the inner backend"
    mkldnn: Any = torch.backends.mkldnn  # untyped in torch
    last = name == "inductor" and convolves and device.type == "cpu" and mkldnn.is_available()
    return Inner(name, lambda module, leaves: run_by(module, leaves, options), last)


def run_by(gm: GraphModule, example_inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Hand a graph to the inner backend of the options.

    Inductor takes its mode and options as configuration patches; other backends get them as torch.compile would hand
    them on.
    """
    inner = options.inner
    if inner == "eager":
        recompute_as_eager(gm)
        return gm.forward
    extra: dict[str, Any] = {}
    if options.inner_options:
        extra["options"] = dict(options.inner_options)
    if options.mode and options.mode != "default":
        extra["mode"] = options.mode
    if callable(inner):
        return cast("Callable[..., Any]", inner(gm, example_inputs, **extra))
    from torch._dynamo.backends.registry import lookup_backend

    compiler: Any = lookup_backend(inner)
    if inner == "inductor":
        from torch._inductor import list_mode_options

        patches = {**(list_mode_options(options.mode) if options.mode else {}), **extra.get("options", {})}
        extra = {"config_patches": patches} if patches else {}
    return cast("Callable[..., Any]", compiler(gm, example_inputs, **extra))


def checkpointed(body: GraphModule, *args: Any, **kwargs: Any) -> Any:
    """An activation checkpoint as `torch.utils.checkpoint` runs it outside a graph."""
    context_fn = body.meta.get("_checkpoint_context_fn", noop_context_fn)
    own = {"use_reentrant": False, "context_fn": context_fn, "early_stop": may_stop(body)}
    return checkpoint(body.forward, *args, **{**kwargs, **own})


def recompute_as_eager(gm: GraphModule, prefix: str = "") -> None:
    """Checkpoints of a graph that is run node by node recompute, and restore the random state before.

    Dynamo's own op leaves that to AOTAutograd: without it a dropout draws another mask in the backward.

    Args:
        gm: the graph.
        prefix: of the names of the bodies that are meant.
    """
    for module in gm.modules():
        if isinstance(module, GraphModule):
            target = torch.ops.higher_order.tag_activation_checkpoint
            calls = module.graph.find_nodes(op="call_function", target=target)
            found = [node for node in calls if str(node.args[0].target).startswith(prefix)]
            for node in found:
                node.target = checkpointed
            if found:
                module.recompile()
