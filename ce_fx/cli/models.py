"""The model that a command is about: `pkg.mod:factory`, `path/to/file.py:factory`, or a `.pt2` exported program."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ce_fx.cli.mistake import Mistake, did_you_mean, one_line, raised_at

if TYPE_CHECKING:
    import torch

HELP = "pkg.mod:factory, path/to/file.py:factory, or an exported program (.pt2). A factory is a function or class that "
HELP += "gives the model, or (model, inputs), or (model, inputs, keyword inputs); a module itself will do"

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".onnx")


@dataclass(frozen=True)
class Loaded:
    """A model, and the inputs that came with it.

    Attributes:
        model: the module.
        args: its positional inputs; None if none came with it.
        kwargs: its keyword inputs.
        exported: it is the graph of an exported program, which has one mode and no Python code.
    """

    model: torch.nn.Module
    args: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    exported: bool = False


def load(word: str, kwargs: str | None = None) -> Loaded:
    """The model that a word of the command line names.

    Args:
        word: see `HELP`.
        kwargs: a JSON object: keyword arguments for the factory.

    Raises:
        Mistake: there is no such model, or it cannot be made; the message says what to do.
    """
    given = _json_object(kwargs)
    place, colon, name = word.rpartition(":")
    if not colon or name.startswith(("/", "\\")):  # the colon of C:\model.pt2 is no separator
        return _of_file(word, given)
    if not place or not name:
        raise Mistake(f"{word!r} names no model: write pkg.mod:factory or path/to/file.py:factory")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module(place)
    return _made(_attribute(module, name, place), word, given)


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Mistake(
            f"--kwargs is no JSON ({error.msg}, at character {error.pos + 1}); write --kwargs '{{\"width\": 64}}'"
        ) from error
    if not isinstance(value, dict):
        raise Mistake(f"--kwargs must be a JSON object, such as '{{\"width\": 64}}', not {text}")
    return value


def _of_file(word: str, given: Mapping[str, Any]) -> Loaded:
    """A word without a colon: a `.pt2` file, or something that lacks its second half."""
    file = Path(word)
    if file.suffix == ".pt2":
        if given:
            raise Mistake("--kwargs are for a factory; an exported program is made already")
        return _exported(file)
    if file.suffix in _CHECKPOINTS:
        raise Mistake(
            f"{word} holds weights or another format, no code to be read: give pkg.mod:factory of the code that "
            "builds the model, or save an exported program by torch.export.save(program, 'model.pt2')"
        )
    if file.suffix == ".py" and file.exists():
        raise Mistake(f"{word}: say which function of the file makes the model, {word}:factory")
    if _is_module(word):
        raise Mistake(f"{word}: say which function of the module makes the model, {word}:factory")
    raise Mistake(f"{word!r} names no model: write pkg.mod:factory, path/to/file.py:factory or a .pt2 file")


def _is_module(name: str) -> bool:
    _on_path(Path.cwd())
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _exported(file: Path) -> Loaded:
    import torch

    if not file.is_file():
        raise Mistake(f"{file}: there is no such file (looked in {Path.cwd()})")
    try:
        program = torch.export.load(str(file))
        model = program.module()
    except Exception as error:  # a file can be wrong in many ways
        raise Mistake(
            f"{file} cannot be read as an exported program ({one_line(error)}); "
            "save one by torch.export.save(program, path), with this version of torch"
        ) from error
    args, kwargs = program.example_inputs or (None, {})
    return Loaded(model, args, kwargs, exported=True)


def _module(name: str) -> ModuleType:
    """Import a module by its dotted name, with the current folder first on the path."""
    _on_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            cure = f"; for the file write {name}.py:factory" if Path(f"{name}.py").exists() else ""
            raise Mistake(
                f"there is no module {missing!r}; ce-fx looks where Python does, and in {Path.cwd()}{cure}. "
                "A file is given by its path: path/to/file.py:factory"
            ) from error
        raise Mistake(
            f"importing {name} failed: {one_line(error)}{raised_at(error)}; install what is missing"
        ) from error
    except (Exception, SystemExit) as error:
        raise Mistake(f"importing {name} failed: {one_line(error)}{raised_at(error)}") from error


def _module_of_file(file: Path) -> ModuleType:
    """Run a Python file as a module; its own folder is on the path, as when it is run as a script."""
    if not file.is_file():
        raise Mistake(f"{file}: there is no such file (looked in {Path.cwd()})")
    if not os.access(file, os.R_OK):
        raise Mistake(f"{file} cannot be read: permission denied")
    _on_path(file.resolve().parent)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dynamo and pickle look a class up by the name of its module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise Mistake(f"running {file} failed: {one_line(error)}{raised_at(error)}") from error
    return module


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = [other for other in dir(module) if not other.startswith("_") and callable(getattr(module, other))]
            raise Mistake(f"{place} has no {name!r}{did_you_mean(name, known)}")
        value = getattr(value, part)
    return value


def _made(factory: Any, word: str, given: Mapping[str, Any]) -> Loaded:
    import torch

    if isinstance(factory, torch.nn.Module):
        if given:
            raise Mistake(f"{word} is a model already, no factory: --kwargs have no use")
        return Loaded(factory)
    if not callable(factory):
        raise Mistake(
            f"{word} is of type {type(factory).__name__}; it must be a function or class that gives the model"
        )
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise Mistake(
            f"{word} takes {_signature(factory)}, which does not fit --kwargs {json.dumps(given)} ({error}); "
            "hand arguments to it by --kwargs '{\"name\": value}'"
        ) from error
    except ValueError:  # something built in, whose signature is not known
        pass
    try:
        made = factory(**given)
    except (Exception, SystemExit) as error:
        raise Mistake(f"{word} raised {one_line(error)}{raised_at(error)}; --traceback shows all of it") from error
    return _loaded(made, word)


def _loaded(made: Any, word: str) -> Loaded:
    import torch

    model, args, kwargs = (
        (*made, None, None)[:3] if isinstance(made, tuple) and 1 <= len(made) <= 3 else (made, None, None)
    )
    if not isinstance(model, torch.nn.Module):
        raise Mistake(
            f"{word} gave something of class {type(made).__name__}, no torch.nn.Module; a factory gives the model"
        )
    if args is not None and not isinstance(args, Sequence):
        args = (args,)
    return Loaded(model, None if args is None else tuple(args), dict(kwargs or {}))


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(..)"
