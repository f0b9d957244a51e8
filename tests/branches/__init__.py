"""Random programs of sums and products, with values read twice and writes in place, as Python source.

A program is a few lines of torch (`v3 = F.conv2d(v1, self.w0)`), so that one which fails can be read, cut down line by
line (`shortest`) and pasted into a test. Every line is run while it is written: what torch refuses is left out.
"""

import random
from collections.abc import Sequence

from tests.branches.families import FAMILIES
from tests.branches.images import adapter, any_conv, branches, one_kernel, rep_vgg, transposed
from tests.branches.program import WRITES, Program, shortest, tidy
from tests.branches.rows import addmm, between, matmuls, shared_matrix
from tests.branches.sums import add, add_up, affine, nonlinear, reduce
from tests.branches.views import back, border, join, view, write
from tests.branches.writer import Skip, Writer

__all__ = ["WRITES", "Program", "program", "shortest"]


_IMAGES = [
    *(any_conv, branches, branches, branches, branches, rep_vgg, rep_vgg, adapter, adapter),
    *(one_kernel, one_kernel, transposed),
]
_ROWS = [matmuls, matmuls, matmuls, matmuls, shared_matrix, shared_matrix, addmm, addmm, between]
_OTHERS = [add, add, add, affine, affine, affine, nonlinear, reduce, view, view, back, join]
_WRITES = [write, write, border]


def _of_families(rng: random.Random, families: Sequence[str], share: int) -> list:
    """Steps of a few families: those that meet in one program meet often."""
    drawn = rng.sample(families, min(len(families), rng.randint(1, 4)))

    def step(name: str):
        def take(w: Writer) -> None:
            w.family = name
            try:
                rng.choice(FAMILIES[name])(w)
            finally:
                w.family = None

        return take

    return [step(name) for name in drawn] * (1 + share // len(drawn))


def program(seed: int, families: Sequence[str] = ()) -> Program:
    """A random program of 2 to 6 steps, each of which is one line or a few; of 2 to 4 with families.

    Args:
        seed: names the program.
        families: of `FAMILIES`, what it may have besides; most of its steps are of some of them.
    """
    rng = random.Random(seed)
    w = Writer(rng)
    image = rng.random() < 0.55
    batch = rng.choice([2, 2, 3, 1])
    if image:
        shape = (batch, rng.randint(1, 5), *(rng.randint(3, 7) for _ in range(rng.choice([1, 2, 2]))))
        if "volume" in families and rng.random() < 0.12:
            shape = (*shape[:2], *(rng.randint(2, 4) for _ in range(3)))
    else:
        shape = (*((batch,) if rng.random() < 0.5 else ()), rng.randint(2, 5), rng.randint(2, 6))
    for _ in range(rng.choice([1, 1, 2])):
        w.input(shape)
    steps = [*(_IMAGES if image else _ROWS) * 2, *_OTHERS, *_WRITES * rng.choice([0, 1, 2, 3])]
    if rng.random() < 0.2:
        steps += [*_IMAGES, *_ROWS]
    goal, most = rng.randint(2, 6), 24
    if families:  # a step has more lines there; what takes long is planned in many programs of few lines, not in few
        goal, most = min(goal, 4), 12
        steps += _of_families(rng, families, 2 * len(steps))
        w.recent = 0.85
    made = 0
    for _ in range(4 * goal):
        if made == goal or len(w.lines) > most:
            break
        before = len(w.lines)
        try:
            rng.choice(steps)(w)
        except Skip:
            pass
        made += len(w.lines) > before
    if rng.random() < 0.3:
        last = w.names[-1]
        same = [name for name in w.names if w.shape(name) == w.shape(last)]
        if len(same) > 1:
            try:
                add_up(w, rng.sample(same, min(len(same), 3)))
            except Skip:
                pass
    share = rng.choice([0.0, 0.1, 0.3]) + 0.1 * bool(families)
    outputs = [name for name in w.names[:-1] if rng.random() < share][:4]
    outputs.append(w.names[-1])
    last = frozenset(n for n, s in w.inputs.items() if len(s) == 4 and rng.random() < 0.15)
    whole = Program(tuple(w.lines), tuple(outputs), w.inputs, w.weights, last, w.families)
    return whole if rng.random() < 0.1 else tidy(whole)
