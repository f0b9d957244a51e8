"""Factorised layers in the place of a model's dense ones, and back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from ce_fx.nn.decompose import SWEEPS, decompose_
from ce_fx.nn.errors import LayerError
from ce_fx.nn.forms import find_form
from ce_fx.nn.layer import ConvEinsum
from ce_fx.nn.ranks import budget_of
from ce_fx.nn.report import Tensorized, TensorizeReport
from ce_fx.nn.select import Found, Selection, find_layers, has_hooks, layers_of, obstacle, parameter_owners, select
from ce_fx.nn.spec import Rank, check_rank


def tensorize(
    model: torch.nn.Module,
    form: str = "rtt",
    rate: float | None = None,
    include: Selection = None,
    exclude: Selection = None,
    from_weights: bool = True,
    *,
    rank: Rank | None = None,
    num_factors: int = 3,
    sweeps: int = SWEEPS,
    seed: int = 0,
    progress: bool | None = None,
) -> torch.nn.Module:
    """Replace the convolutions and linear layers of a model by factorised ones, in place.

    As with `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, the model itself is changed and returned; copy it first
    (`copy.deepcopy`) to keep the dense one. A model that is itself a layer is not changed: its replacement is returned.
    Make optimizers afterwards, for the weights are new parameters. A layer keeps its name, bias (the same parameter),
    stride, padding, dilation, groups, padding mode, dtype, device, `requires_grad` and mode. A module that is used in
    several places is replaced once and stays shared.

    What was done is in the attribute `tensorize_report` of the returned module; `print` shows the relative error of
    every kernel and why a layer stayed: it has no rank of this rate, hooks, a tied weight, a class of its own, ..

    Args:
        model: any module.
        form: a key of `ce_fx.nn.FORMS`.
        rate: weights of a new layer over those of the dense one, 0.1 if neither this nor a rank is given.
        include: which layers: a name pattern (`"layer?.*.conv1"`, as of `fnmatch`), a module class, a function of name
            and module, or a list of these. None: all.
        exclude: which of these not, in the same way.
        from_weights: decompose the trained kernels (see `ce_fx.nn.decompose_`); else draw new factors, from torch's
            global generator, as of a new layer.
        rank: instead of a rate, as of `ConvEinsum.of_form`.
        num_factors: M, the number of channel factors of the reshaped forms.
        sweeps: of alternating least squares, at most.
        seed: of the decomposition; global generators are not used.
        progress: show a progress bar; None: on a terminal.

    Returns:
        The model.

    Raises:
        LayerError: there is no such form, rate or rank, a pattern of `include` or `exclude` matches no layer, or both a
            rate and a rank were given. The model is as it was then, as after any other error.
    """
    find_form(form, 2, num_factors)
    if rate is None and rank is None:
        rate = 0.1
    if rate is not None and rank is not None:
        raise LayerError(f"give either rate or rank: rate is {rate!r} and rank {rank!r}")
    if rate is not None:
        budget_of(rate, 1)  # raises now what every layer would
    if rank is not None:
        check_rank(rank)
    why_not, owners = select(model, include, exclude), parameter_owners(model)
    options: dict[str, Any] = {"rate": rate, "rank": rank, "num_factors": num_factors}
    made: list[tuple[Found, ConvEinsum]] = []
    rows: list[Tensorized] = []
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    for found in tqdm(layers_of(model), desc="tensorize", unit="layer", disable=hidden, leave=False):
        layer, error = None, None
        reason = why_not(found) or obstacle(found.module, owners, from_weights)
        if not reason:
            try:
                layer = _like(found.module, form, fresh=not from_weights, **options)
                error = decompose_(layer, found.module.weight, sweeps=sweeps, seed=seed) if from_weights else None
            except LayerError as refusal:
                layer, reason = None, str(refusal)
        if layer is not None:
            made.append((found, layer))
        rows.append(_row(found, layer, reason, error))
    for found, new in made:
        model = _put(model, found.names, new)
    model.tensorize_report = TensorizeReport(form, tuple(rows))  # type: ignore[assignment]
    return model


def densify(model: torch.nn.Module) -> torch.nn.Module:
    """Replace every `ConvEinsum` of a model by the dense layer with the same function, in place.

    Args:
        model: any module; one that is itself a `ConvEinsum` is not changed.

    Returns:
        The model, or the dense layer in the place of a `ConvEinsum`. Biases stay the same parameters.

    Raises:
        LayerError: a layer has hooks, which would be lost. The model is as it was then.
    """
    layers = find_layers(model, (ConvEinsum,))
    for found in layers:
        if has_hooks(found.module):
            raise LayerError(f"{found.names[0] or 'the model'} has hooks, which would be lost; remove them first")
    for found in layers:
        dense = found.module.to_dense()
        dense.bias = found.module.bias
        model = _put(model, found.names, dense)
    for module in model.modules():
        vars(module).pop("tensorize_report", None)
    return model


def _like(module: Any, form: str, *, fresh: bool, **options: Any) -> ConvEinsum:
    """A new layer of the size and geometry of a dense one, with its bias.

    It is made without values, so that torch's generator is not used unless it is to be.
    """
    weight = module.weight
    geometry: dict[str, Any] = {}
    groups = 1
    if weight.dim() > 2:
        groups = module.groups
        geometry = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    options.update(geometry, groups=groups, bias=False, dtype=weight.dtype, device="meta")
    made = ConvEinsum.of_form(form, weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), **options)
    layer = made.to_empty(device=weight.device)
    if fresh:
        layer.reset_parameters()
    layer.requires_grad_(weight.requires_grad)
    layer.bias = module.bias
    return layer.train(module.training)


def _put(model: torch.nn.Module, names: Sequence[str], module: torch.nn.Module) -> torch.nn.Module:
    """Set a module in all its places; the place "" is the model itself."""
    for name in names:
        path, _, own = name.rpartition(".")
        if name:
            setattr(model.get_submodule(path), own, module)
    return module if "" in names else model


def _row(found: Found, layer: ConvEinsum | None, reason: str, error: float | None) -> Tensorized:
    weight = getattr(found.module, "weight", None)
    known = isinstance(weight, torch.Tensor) and not torch.nn.parameter.is_lazy(weight)
    before = weight.numel() if known and weight is not None else 0
    name, *aliases = found.names
    kind, others = type(found.module).__name__, tuple(aliases)
    if layer is None:
        return Tensorized(name, kind, "kept", reason, (), before, before, None, others)
    return Tensorized(name, kind, "replaced", "", layer.ranks, before, layer.num_weights, error, others)
