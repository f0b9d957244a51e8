"""What Dynamo says while it compiles a model: where a graph broke and why, what it skipped, what it compiled anew for.

Dynamo calls a backend for the graphs that it captures, and each of them holds what ended it. Of a frame that it skips,
or of one that breaks before any op, a backend hears nothing: Dynamo counts the reasons (`counters`), and tells its
callbacks when a compilation begins and ends. Dynamo takes long to import; it is there when it compiles.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

if TYPE_CHECKING:
    from torch._dynamo.callback import CallbackArgs

log = logging.getLogger(__name__)

_PACKAGE = str(Path(__file__).parent)

_RAISED = "Observed exception"
"""The beginning of the reason where the model itself raises."""

_MEANINGS = {
    "generic_jump": "what runs next depends on data",
    "Data-dependent branching": "what runs next depends on data",
    "step_unsupported": "an instruction that Dynamo does not know",
}
"""The beginning of a reason of Dynamo's -> what it means, where its first line does not say it."""


@dataclass(frozen=True)
class Break:
    """Where a graph ended although the model went on, or a frame of which nothing was captured.

    Attributes:
        reason: one line.
        code: the line of code, or the name of the function that was not captured.
        file: where that stands; empty if it is no code of the model's.
        line: in the file.
    """

    reason: str
    code: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line} ({self.code})" if self.file else self.code
        return f"{place}: {self.reason}"


class Listener:
    """Hears of the compilations below a function whose local variable `session` holds it."""

    def missed(self, missed: Break, compile_id: str) -> None:
        """A frame broke or was skipped.

        Args:
            missed: where and why.
            compile_id: Dynamo's, of the compilation; a graph of the same may have been captured before the break.
        """

    def stopped(self, reason: str) -> None:
        """A graph break was counted; where a graph was captured before it, it holds the same reason."""

    def compilation_ended(self) -> None:
        """Dynamo is done with the graphs that it handed over."""


def break_of(gm: GraphModule) -> Break | None:
    """What ended a graph of Dynamo's; None where the frame came to its end."""
    found: Any = getattr(gm, "compile_subgraph_reason", None)
    if found is None or not found.graph_break or not found.user_stack:
        return None
    frames = [frame for frame in found.user_stack if not _is_library(frame.filename)]
    frame = (frames or found.user_stack)[-1]  # the model's own line, not that of a library which it calls
    return Break(_meaning(found.reason), (frame.line or frame.name).strip(), frame.filename, frame.lineno or 0)


def _is_library(file: str) -> bool:
    return any(place in file for place in ("site-packages", "dist-packages", _PACKAGE))


def recompile_reason() -> str | None:
    """The guard that failed, if what Dynamo compiles now was compiled before."""
    from torch._dynamo.utils import get_metrics_context

    reason = getattr(get_metrics_context(), "_metrics", {}).get("recompile_reason")
    if not reason:
        return None
    first = reason.splitlines()[0].partition("(HINT")[0]
    return re.sub(r"\s+", " ", re.sub(r"^\d+/\d+: ", "", first)).strip()


def watch() -> None:
    """Have listeners hear of all compilations from now on; Dynamo forgets it when it is reset."""
    from torch._dynamo.callback import callback_handler

    if _began not in callback_handler.start_callbacks:
        callback_handler.register_start_callback(_began)
        callback_handler.register_end_callback(_ended)


_COUNTED: Counter[tuple[str, str]] = Counter()
"""What was counted before the compilation that is going on; Dynamo has one at a time."""


def _began(args: CallbackArgs) -> None:
    from torch._dynamo.utils import counters

    _COUNTED.clear()
    for name in ("unimplemented", "graph_break"):
        _COUNTED.update({(name, text): times for text, times in counters[name].items()})


def _ended(args: CallbackArgs) -> None:
    try:
        _tell(args)
    except Exception as error:  # what is raised here would end the user's call
        log.debug("what Dynamo did not capture is not known", exc_info=error)


def _tell(args: CallbackArgs) -> None:
    from torch._dynamo.utils import counters

    frames = list(_stack(sys._getframe()))
    sessions = (frame.f_locals.get("session") for frame in frames)
    listener = next((session for session in sessions if isinstance(session, Listener)), None)
    if listener is None:
        return
    listener.compilation_ended()
    reasons, breaks = (_new(name, counters[name]) for name in ("unimplemented", "graph_break"))
    if breaks:
        listener.stopped(_meaning(breaks[-1]))
    if reasons:
        codes = (frame.f_locals.get("code") for frame in frames if frame.f_code.co_name == "_compile")
        code = next((code for code in codes if isinstance(code, CodeType)), None)
        listener.missed(_missed(reasons[-1], code), args.compile_id)


def _new(name: str, counted: Mapping[str, int]) -> list[str]:
    """The reasons that were counted since the compilation began, without what the model itself raises."""
    new = (text for text, times in counted.items() if times > _COUNTED[name, text])
    return [text for text in new if not text.startswith(_RAISED)]


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _missed(text: str, code: CodeType | None) -> Break:
    """A reason of Dynamo's counters, and the code that it compiled."""
    reason = _meaning(text)
    if "frame skipped" in text:
        reason = f"{reason}; of this function Dynamo captures only what it calls"
    if code is None or code.co_filename.startswith("<"):
        return Break(reason, "a function")
    entry = re.fullmatch(r"call_(\w+)_\d+", code.co_name)
    if entry and code.co_filename.startswith(_PACKAGE):  # our own, see `_entry`
        return Break(reason, f"{entry[1]}.forward")
    resumed = re.fullmatch(r"torch_dynamo_resume_in_(\w+)_at_(\d+)", code.co_name)
    if resumed:
        return Break(reason, f"the rest of {resumed[1]}", code.co_filename, int(resumed[2]))
    return Break(reason, code.co_name, code.co_filename, code.co_firstlineno)


def _meaning(reason: str) -> str:
    first = next(iter(reason.splitlines()), "")
    return next((meaning for start, meaning in _MEANINGS.items() if first.startswith(start)), first)
