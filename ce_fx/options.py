"""The options of every front door: one frozen record and one validator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from ce_fx.errors import CeFxError

Objective: TypeAlias = Literal["time", "flops", "memory"]
OBJECTIVES = ("time", "flops", "memory")


TORCH_COMPILES = {
    "dynamic": "give it to torch.compile(model, dynamic=..)",
    "fullgraph": "give it to torch.compile(model, fullgraph=..)",
}
"""Options of a view that are torch.compile's own where that is the front door."""


class OptionError(CeFxError, ValueError):
    """An option is unknown or has a bad value; the message names the nearest, or what is allowed."""


def refuse(given: Mapping[str, Any], elsewhere: Mapping[str, str], door: str) -> None:
    """Tell where options belong that a door has not got.

    Raises:
        OptionError: one of them is given.
    """
    for name, instead in elsewhere.items():
        if name in given:
            raise OptionError(f"{name} is no option of {door}: {instead}")


def _tune() -> str | bool:
    """The default of `tune`: "auto", or what CE_FX_TUNE says (auto, 1, 0), for machines where nothing may be timed."""
    given = os.environ.get("CE_FX_TUNE", "auto")
    if given not in _TUNES:
        raise OptionError(f"CE_FX_TUNE must be one of {', '.join(_TUNES)}, not {given!r}")
    return _TUNES[given]


_TUNES: dict[str, str | bool] = {"auto": "auto", "1": True, "0": False}


@dataclass(frozen=True)
class Options:
    """Options of every front door: `optimize`, `rewrite`, `audit`, `InductorPass` and the backend.

    Attributes:
        objective: what a plan minimises: "time" (predicted, then measured seconds), "flops" (multiply-adds) or "memory"
            (the largest intermediate; in training what autograd saves, among orders within a tenth of the best time).
        tune: "auto": measure where the prediction is close; True: always; False: never. The default is what the
            environment variable CE_FX_TUNE says (auto, 1, 0), else "auto".
        memory_limit: bytes that no intermediate of a plan may exceed, forward and backward; None for no limit. What
            runs as written is not bounded by it.
        checkpoint: in training keep no intermediate of a region; compute them again in the backward.
        fold: compute what depends on weights only once, in calls without gradients. A promise that weights change only
            in ways that can be seen (see `refresh`).
        verify: run each rewritten region once against its original nodes, and keep the original on a mismatch.
        dynamic: symbolic sizes, as in `torch.compile`: None (when a size has changed), True, False.
        fullgraph: a graph break is an error, as in `torch.compile`.
        inner: what runs the rewritten graph: "eager", "inductor", another backend that `torch.compile` knows, or a
            callable.
        inner_options: handed to the inner backend.
        mode: of the inner backend, such as "max-autotune".
        verbose: a progress bar: None on a terminal when planning takes long, True always, False never.
    """

    objective: Objective = "time"
    tune: str | bool = field(default_factory=_tune)
    memory_limit: int | None = None
    checkpoint: bool = False
    fold: bool = False
    verify: bool = True
    dynamic: bool | None = None
    fullgraph: bool = False
    inner: str | Callable[..., Any] = "eager"
    inner_options: Mapping[str, Any] | None = None
    mode: str | None = None
    verbose: bool | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Options from a mapping; it is copied.

        Raises:
            OptionError: a key is unknown or a value is not allowed.
        """
        known = [f.name for f in fields(cls)]
        for name, value in given.items():
            if name not in known:
                near = get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}"
                raise OptionError(f"unknown option {name!r}: {hint}")
            allowed, means = _ALLOWED[name]
            if not allowed(value):
                raise OptionError(f"{name} must be {means}, not {value!r}")
        frozen = dict(given)
        if frozen.get("inner_options") is not None:
            frozen["inner_options"] = MappingProxyType(dict(frozen["inner_options"]))
        return cls(**frozen)

    def to_dict(self) -> dict[str, Any]:
        """The options as a plain dict, to be given to `of` again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if values["inner_options"] is not None:
            values["inner_options"] = dict(values["inner_options"])
        return values


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "objective": (lambda v: v in OBJECTIVES, "'time', 'flops' or 'memory'"),
    "tune": (lambda v: v == "auto" or _is_bool(v), "'auto', True or False"),
    "memory_limit": (
        lambda v: v is None or (isinstance(v, int) and not _is_bool(v) and v > 0),
        "a positive number of bytes or None",
    ),
    "checkpoint": (_is_bool, "True or False"),
    "fold": (_is_bool, "True or False"),
    "verify": (_is_bool, "True or False"),
    "dynamic": (lambda v: v is None or _is_bool(v), "None, True or False"),
    "fullgraph": (_is_bool, "True or False"),
    "inner": (lambda v: isinstance(v, str) or callable(v), "the name of a registered backend, or a callable"),
    "inner_options": (lambda v: v is None or isinstance(v, Mapping), "a dict or None"),
    "mode": (lambda v: v is None or isinstance(v, str), "a mode of the inner backend or None"),
    "verbose": (lambda v: v is None or _is_bool(v), "None, True or False"),
}
