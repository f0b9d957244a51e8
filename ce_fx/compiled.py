"""What was compiled for one model: a record of each graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch._guards import CompileContext, CompileId
from torch.fx import GraphModule

from ce_fx.fold import Running
from ce_fx.report import GraphReport
from ce_fx.watch import Break


@dataclass(frozen=True)
class Compiled:
    """One graph that was compiled.

    Attributes:
        gm: the graph that runs.
        found: what was decided in it, and what else runs there.
        compiling: Dynamo's compilation of a Python frame that it was made in. Another flag or size compiles the frame
            anew; under DDP one compilation makes a graph for each of its buckets.
        running: what runs it, with what it keeps.
        parameters: the identity of each input that is a parameter, None for others.
        ended: the graph break that ended it, if one did.
        why: the guard that failed, if the frame was compiled before.
        grad: gradients are recorded.
    """

    gm: GraphModule
    found: GraphReport
    compiling: CompileContext | None
    running: Running
    parameters: tuple[int | None, ...] = ()
    ended: Break | None = None
    why: str | None = None
    grad: bool = False

    @property
    def frame(self) -> int | None:
        """Dynamo's number of the Python frame."""
        return self.compile_id.frame_id if self.compile_id else None

    @property
    def compile_id(self) -> CompileId | None:
        """Dynamo's number of the compilation."""
        return self.compiling.compile_id if self.compiling else None

    @property
    def weights(self) -> set[int]:
        """Identities of the parameters that it is given; modules of one class share their frames."""
        return {each for each in self.parameters if each is not None}

    def replaces(self, other: Compiled) -> bool:
        """Whether both are the same frame of the same module, compiled for different flags or sizes."""
        if self.compiling is not None and self.compiling is other.compiling:  # another bucket
            return False
        both = self.weights & other.weights
        return self.frame == other.frame and bool(both or not (self.weights and other.weights))


def latest(compiled: Sequence[Compiled]) -> list[Compiled]:
    """The latest compilation of every frame of every module, in the order of the first."""
    found: list[Compiled] = []
    for each in compiled:
        replaced = [n for n, old in enumerate(found) if each.replaces(old)]
        place = replaced[0] if replaced else len(found)
        found = [*found[:place], each, *(old for old in found[place:] if not each.replaces(old))]
    return found


def varied(variants: Sequence[Compiled]) -> str:
    """Which guards failed from one compilation of a frame to the next, one of each kind."""
    reasons = [each.why for each in variants if each.why]
    kinds = {re.sub(r"-?\d+(\.\d+)?", "#", reason): reason for reason in reasons}
    return "; ".join(kinds.values()) or "unknown"
