"""The one way to refuse: a value that carries its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why something is not lifted, in one plain sentence; it goes into the report as it is."""

    reason: str
