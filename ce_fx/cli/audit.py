"""`ce-fx audit`: what ce_fx would do to a model, layer by layer, and why."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ce_fx.cli import inputs, models
from ce_fx.cli.machine import add_machine, set_machine
from ce_fx.cli.mistake import Bug, Mistake, one_line

if TYPE_CHECKING:
    from ce_fx.report import Report

FORMATS = {"text": "to_text", "md": "to_markdown", "csv": "to_csv", "json": "to_json", "html": "to_html"}
"""Name of a format -> the method of the report that gives it."""

SUFFIXES = {".txt": "text", ".md": "md", ".csv": "csv", ".json": "json", ".html": "html", ".htm": "html"}
"""The format of a file by the end of its name, where `--format` is not given."""

SORTS = ("graph", "gain", "time", "name")
"""As `ce_fx.report.lines.SORTS`, whose import would bring half of the package before there is anything to do."""

_TEXT_ONLY = {"sort": "graph", "depth": None, "min_gain": None, "plans": False}
"""Options that shape the text table, with what they are where they are not given; other formats hold everything."""

_WIDE = 160  # columns of a text file, which is not written for this terminal

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command's parser."""
    one: argparse.ArgumentParser = commands.add_parser(
        "audit",
        help="what ce_fx would do to a model, layer by layer, and why",
        description="Run a model once on random inputs and report what ce_fx finds in it. Nothing is changed.",
        epilog="example: ce-fx audit torchvision.models:resnet18 --input 8x3x224x224",
    )
    one.add_argument("model", help=models.HELP)
    one.add_argument("--kwargs", metavar="JSON", help="keyword arguments for the factory, as a JSON object")
    one.add_argument("--input", action="append", default=[], metavar="SPEC", help=inputs.HELP)
    one.add_argument("--train", action="store_true", help="forward and backward, in training mode (else forward, eval)")
    add_machine(one)
    table = one.add_argument_group("output")
    table.add_argument("--format", choices=FORMATS, help="default: by the end of the output file's name, else text")
    table.add_argument("--output", metavar="FILE", help="write it there instead of printing it")
    table.add_argument("--sort", choices=SORTS, default="graph", help="order of the rows (default: as they run)")
    table.add_argument("--depth", type=int, metavar="N", help="sum rows by module paths of N parts")
    table.add_argument("--min-gain", type=float, metavar="X", help="only rows that gain a factor X or more")
    table.add_argument("--plans", action="store_true", help="also print the steps of every plan")
    options = one.add_argument_group("options of optimize")
    options.add_argument("--objective", choices=("time", "flops", "memory"), help="default: time")
    options.add_argument("--tune", action=argparse.BooleanOptionalAction, help="measure always, or never")
    options.add_argument("--fold", action="store_true", help="for serving: what depends on weights only counts as made")
    options.add_argument("--checkpoint", action="store_true", help="for training: regions recompute, see --train")
    options.add_argument("--inner", metavar="NAME", help="what runs the graph: eager, aot_eager, inductor, ..")
    options.add_argument("--mode", help="of the inner backend, such as max-autotune")
    options.add_argument("--memory-limit", metavar="BYTES", help="of the largest intermediate: 500000, 64M, 2G")
    options.add_argument("--dynamic", action=argparse.BooleanOptionalAction, help="symbolic sizes, as in torch.compile")
    one.add_argument("--quiet", action="store_true", help="no progress bar (it shows on terminals only)")
    return one


def run(given: argparse.Namespace) -> int:
    """Load, audit, print.

    Returns:
        0; 130 if planning was stopped by Ctrl-C: the table is printed with what is known then.

    Raises:
        Mistake: model, inputs or options do not fit.
    """
    kind = _format(given)
    options = _options(given)
    device = set_machine(given)
    with device if device.type == "meta" else nullcontext():  # weights that are too large to be made
        loaded = models.load(given.model, given.kwargs)
    args, kwargs = _inputs(given, loaded, device)
    report = _audited(given, loaded, args, kwargs, options)
    _write(_rendered(report, kind, given), given.output)
    stopped = sum(layer.reason.startswith(_stopped()) for layer in report.layers)
    if stopped:
        print(f"ce-fx: stopped; {stopped} of {len(report.layers)} layers were not planned", file=sys.stderr)
    return 130 if stopped else 0


def _stopped() -> str:
    from ce_fx.rewrite import STOPPED

    return STOPPED


def _format(given: argparse.Namespace) -> str:
    """The format, and whether the file can be written: it is better to know that before the model runs."""
    out = None if given.output in (None, "-") else Path(given.output)
    if out is not None:
        folder = out.parent
        if not folder.is_dir():
            raise Mistake(f"--output {out}: there is no folder {folder}; make it first")
        if out.is_dir():
            raise Mistake(f"--output {out} is a folder; give the name of a file in it")
        if not os.access(out if out.exists() else folder, os.W_OK):
            raise Mistake(f"--output {out} cannot be written: permission denied")
    kind: str = given.format or SUFFIXES.get(out.suffix.lower() if out else "", "text")
    shaped = [f"--{name.replace('_', '-')}" for name, usual in _TEXT_ONLY.items() if getattr(given, name) != usual]
    if kind != "text" and shaped:
        raise Mistake(f"{shaped[0]} shapes the text table; {kind} holds all rows and plans: leave it out")
    if given.depth is not None and given.depth < 1:
        raise Mistake(f"--depth must be at least 1, not {given.depth}")
    if given.min_gain is not None and not given.min_gain > 0:
        raise Mistake(f"--min-gain must be a factor above 0, such as 1.2, not {given.min_gain}")
    return kind


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """The options of `optimize` that were given, checked before anything is loaded."""
    from ce_fx.options import Options

    names = ("objective", "tune", "inner", "mode", "dynamic")
    options = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.memory_limit is not None:
        options["memory_limit"] = _bytes(given.memory_limit)
    if given.fold:
        if given.train:
            raise Mistake("--fold is for serving, without gradients: leave --fold or --train out")
        options["fold"] = True
    if given.checkpoint:
        if not given.train:
            raise Mistake("--checkpoint is for training: add --train, or leave it out")
        options["checkpoint"] = True
    if given.quiet:
        options["verbose"] = False
    Options.of(options)
    return options


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise Mistake(f"--memory-limit {text!r} is no number of bytes; write 500000, 64M or 2G")
    return int(float(found[1]) * _BYTES[found[2].upper()])


def _inputs(given: argparse.Namespace, loaded: models.Loaded, device: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of the command line, else those that came with the model; the model is put into mode and place."""
    import torch
    from torch.utils._pytree import tree_map_only

    if loaded.exported:  # its graph has one mode, and `train()` would raise
        loaded.model.training = given.train
    loaded.model.to(device)
    if given.input:
        args, kwargs = inputs.inputs_of(given.input, device)
    elif loaded.args is not None or loaded.kwargs:
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to(device), (loaded.args or (), dict(loaded.kwargs)))
    else:
        args, kwargs = (), {}
    try:
        inspect.signature(loaded.model.forward).bind(*args, **kwargs)
    except TypeError as error:
        takes = inspect.signature(loaded.model.forward)
        raise Mistake(
            f"{type(loaded.model).__name__}.forward takes {takes}, and got {_shapes(args, kwargs)} ({error}); "
            "give one --input for each, such as --input 8x3x224x224, or name=8x128:int64 for a keyword"
        ) from error
    except ValueError:
        pass
    return args, kwargs


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Inputs in the words of the command line."""
    words = [_word(arg) for arg in args] + [f"{name}={_word(value)}" for name, value in kwargs.items()]
    return ", ".join(words) or "no input"


def _word(value: Any) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__}:{value}" if isinstance(value, (int, float, bool, str)) else type(value).__name__
    dtype = str(value.dtype).removeprefix("torch.")
    return ("x".join(map(str, value.shape)) or "scalar") + (f":{dtype}" if dtype != "float32" else "")


def _audited(
    given: argparse.Namespace,
    loaded: models.Loaded,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
) -> Report:
    """The report; where that fails the model is run as written, which tells whose error it is in fewer words."""
    import ce_fx

    try:
        return ce_fx.audit(loaded.model, args, kwargs, train=given.train, **options)
    except ce_fx.CeFxError:
        raise
    except Exception as error:
        try:
            loaded.model(*args, **kwargs)
        except Exception as own:
            raise Mistake(_raised(own, loaded.model, args, kwargs)) from own
        raise Bug(one_line(error)) from error


_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


def _raised(error: Exception, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    said = f"{type(model).__name__} raised {one_line(error)} on {_shapes(args, kwargs)}"
    if _NO_MEMORY.search(str(error)):
        return f"{said}; give a smaller --input, such as one of a smaller batch"
    return f"{said}; change --input to what it takes, or see --traceback"


def _rendered(report: Report, kind: str, given: argparse.Namespace) -> str:
    if kind != "text":
        return str(getattr(report, FORMATS[kind])())
    shaped = {name: getattr(given, name) for name, usual in _TEXT_ONLY.items() if getattr(given, name) != usual}
    if given.output not in (None, "-"):
        shaped["width"] = _WIDE
    to_text: Callable[..., str] = report.to_text
    return to_text(**shaped)


def _write(text: str, output: str | None) -> None:
    if output in (None, "-"):
        print(text.rstrip("\n"))
        return
    assert output is not None
    Path(output).write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
    print(f"written to {output}", file=sys.stderr)
