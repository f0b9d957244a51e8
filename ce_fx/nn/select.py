"""Which layers of a model are to be replaced, and which cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, Union

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin

from ce_fx.nn.errors import LayerError

One: TypeAlias = Union[str, type[torch.nn.Module], Callable[[str, torch.nn.Module], bool]]  # noqa: UP007
Selection: TypeAlias = Union[One, Sequence[One], None]  # noqa: UP007

REPLACEABLE = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True)
class Found:
    """A convolution or linear layer of a model.

    Attributes:
        names: its module paths; several of a shared module.
        module: the layer.
    """

    names: tuple[str, ...]
    module: Any


def find_layers(model: torch.nn.Module, kinds: tuple[type[torch.nn.Module], ...]) -> list[Found]:
    """All modules of some classes, each once, with all their names."""
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kinds):
            names.setdefault(module, []).append(name)
    return [Found(tuple(paths), module) for module, paths in names.items()]


def layers_of(model: torch.nn.Module) -> list[Found]:
    """The layers that `tensorize` looks at: all convolutions and linear layers."""
    return find_layers(model, (torch.nn.Linear, _ConvNd))


def select(model: torch.nn.Module, include: Selection, exclude: Selection) -> Callable[[Found], str]:
    """A function that says why a layer is not selected, or nothing if it is.

    Raises:
        LayerError: a name pattern matches no layer, or an entry is none of what it may be.
    """
    wanted, unwanted = _entries("include", include, model), _entries("exclude", exclude, model)

    def why_not(found: Found) -> str:
        if include is not None and not _matches(wanted, found):
            return "not in include"
        return "in exclude" if _matches(unwanted, found) else ""

    return why_not


def _entries(argument: str, given: Selection, model: torch.nn.Module) -> list[One]:
    entries: list[Any] = list(given) if isinstance(given, (list, tuple, set)) else [] if given is None else [given]
    for entry in entries:
        if isinstance(entry, str):
            _check_pattern(argument, entry, model)
        if not isinstance(entry, (str, type)) and not callable(entry):
            raise LayerError(f"{argument}: {entry!r} is no name pattern, module class or function of (name, module)")
    return entries


def _check_pattern(argument: str, pattern: str, model: torch.nn.Module) -> None:
    layers = [name for found in layers_of(model) for name in found.names]
    if any(fnmatchcase(name, pattern) for name in layers):
        return
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    within = next((name for name in names if fnmatchcase(name, pattern)), None)
    if within is None:
        near = get_close_matches(pattern, names, 3) or names[1:4]
        raise LayerError(f"{argument}: no module is named like {pattern!r}; there are {', '.join(map(repr, near))}, ..")
    inner = any(name.startswith(f"{within}.") for name in layers)
    some = ", ".join(map(repr, layers[:3]))
    cure = f"{pattern + '.*'!r} names the layers within" if inner else f"there are {some}, .."
    raise LayerError(f"{argument}: {pattern!r} is the name of no convolution or linear layer; {cure}")


def _matches(entries: Iterable[Any], found: Found) -> bool:
    def one(entry: Any, name: str) -> bool:
        if isinstance(entry, str):
            return fnmatchcase(name, entry)
        return isinstance(found.module, entry) if isinstance(entry, type) else bool(entry(name, found.module))

    return any(one(entry, name) for entry in entries for name in found.names)


def obstacle(module: Any, owners: dict[torch.nn.Parameter, list[str]], from_weights: bool) -> str:
    """Why a layer cannot be replaced, as one sentence, or nothing.

    Args:
        module: a convolution or linear layer.
        owners: the names of the modules that hold each parameter.
        from_weights: its weights are to be decomposed.
    """
    if isinstance(module, LazyModuleMixin):
        return "its sizes are not known before its first call"
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolutions have no form here"
    if type(module) not in REPLACEABLE or "forward" in vars(module):
        return f"{type(module).__name__} may compute something else than the plain layer"
    if has_hooks(module):
        return "it has hooks, which would be lost"
    if set(dict(module.named_parameters())) - {"weight", "bias"} or not isinstance(module.weight, torch.nn.Parameter):
        return "its weight is computed from other parameters"
    if not (module.weight.is_floating_point() or module.weight.is_complex()):
        return f"its weights are {module.weight.dtype}"
    if from_weights and module.weight.is_meta:
        return "its weights are on the meta device and have no values; from_weights=False needs none"
    for parameter in module.parameters(recurse=False):
        if len(owners[parameter]) > 1:
            return f"a parameter is shared: {' and '.join(owners[parameter])}"
    return ""


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether hooks run before or after a module's forward or backward."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def parameter_owners(model: torch.nn.Module) -> dict[torch.nn.Parameter, list[str]]:
    """The full names of every parameter, one for each distinct module that holds it."""
    owners: dict[torch.nn.Parameter, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append(name)
    return owners
