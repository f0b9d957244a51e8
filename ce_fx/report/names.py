"""Names that the user wrote: module paths from a graph's metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

import torch
from torch.fx import Node

_ROOT = re.compile(r"^L\[['\"][^'\"]*['\"]\]\.?")
_INPUT = re.compile(r"^L\[['\"]([^'\"]*)['\"]\]")
_GIVEN = re.compile(r"^L\['(args|kwargs)'\]\['?([^'\]]+)'?\]$")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_ITEM = re.compile(r"\[['\"]?([^'\"\]]+)['\"]?\]")
_TABLE = re.compile(r"(?:\.__dict__\[['\"]_modules['\"]\]|\._(?:modules|parameters|buffers))(?=\[)")
"""Where Dynamo looks a child up: `._modules['a']`, or `.__dict__['_modules']['a']` where a class has its own way."""


def module_path(raw: str) -> str:
    """A plain dotted path from one that Dynamo or export wrote: `L['self']._modules['a'][0].b` -> `a.0.b`."""
    path = _ROOT.sub("", _TABLE.sub("", raw.replace("self._modules", "_modules")))
    path = re.sub(r"^_modules(?=\[)", "", path)
    return _ITEM.sub(r".\1", path).strip(".")


def stack_of(node: Node) -> list[tuple[str, str]]:
    """(module path, class name) of the modules that a node was called in, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(module_path(path), _class_name(kind)) for path, kind in stack.values()]


def layer_name(nodes: Sequence[Node]) -> str:
    """The module path of a stretch: the innermost module that holds all of it, or the first and last if that is all.

    What the model itself computes, in no sub-module, goes by its op and the line it stands on: "matmul at net.py:12".
    Without metadata it is the name of a sub-module that is called, else the last node's name.
    """
    paths = list(dict.fromkeys(_path(node) for node in nodes if _path(node)))
    if not paths:
        last = nodes[-1]
        place = _line_of(last)
        name = str(getattr(last.target, "__name__", last.target))
        return f"{name} at {place}" if place else name if last.meta.get("stack_trace") else last.name
    common = _common(paths)
    return common if common or len(paths) == 1 else f"{paths[0]} .. {paths[-1]}"


def value_name(node: Node) -> str:
    """What a user would call a value: the path of a parameter, the name of an input, or the layer that made it."""
    source = getattr(node, "_dynamo_source", None)
    raw = getattr(source, "name", "")
    raw = raw() if callable(raw) else raw
    given = _GIVEN.match(raw)
    if given:  # a model's call is captured with all that it is given in `args` and `kwargs`
        return f"input {given[2]}" if given[1] == "args" else given[2]
    if raw:
        return module_path(raw) or (found.group(1) if (found := _INPUT.match(raw)) else raw)
    if node.op in ("get_attr", "placeholder"):
        return str(node.target)
    return f"from {layer_name([node])}"


def kind_of_layer(nodes: Sequence[Node]) -> str:
    """The class of the module that holds all of a stretch, or the ops' own names."""
    name = layer_name(nodes)
    for node in nodes:
        for path, kind in stack_of(node):
            if path == name:
                return kind
    return str(getattr(nodes[-1].target, "__name__", nodes[-1].target))


def _line_of(node: Node) -> str:
    """File and line of the user's code that made a node; "" where it is not known, or the model itself is the op."""
    frames = [frame for frame in _FRAME.findall(node.meta.get("stack_trace") or "") if not _is_inside(frame[0])]
    return f"{PurePath(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""


_INSIDE = (PurePath(__file__).parent.parent, PurePath(torch.__file__).parent)


def _is_inside(file: str) -> bool:
    """Whether a file is of ce_fx, which calls the model, or of torch: no code of the user's."""
    return any(PurePath(file).is_relative_to(place) for place in _INSIDE)


def _path(node: Node) -> str:
    stack = stack_of(node)
    if stack and stack[-1][0]:
        return stack[-1][0]
    return str(node.target) if node.op == "call_module" else ""


def _common(paths: Sequence[str]) -> str:
    parts = [path.split(".") for path in paths]
    common = []
    for steps in zip(*parts, strict=False):
        if len(set(steps)) > 1:
            break
        common.append(steps[0])
    return ".".join(common)


def _class_name(kind: object) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
