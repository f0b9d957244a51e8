"""What a user got wrong, in one line that says what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches


class Mistake(Exception):
    """Bad input to a command; the message is the line that is printed."""


class Bug(Exception):
    """The input was good, and ce_fx failed; the message is the line that is printed."""


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def raised_at(error: BaseException) -> str:
    """Where an error was raised, as ` (file:line)`; empty if that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a word that resembles a known one, else what there is."""
    known = list(known)
    near = get_close_matches(word, known, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there is {', '.join(known[:12])}{', ..' if len(known) > 12 else ''}" if known else ""
