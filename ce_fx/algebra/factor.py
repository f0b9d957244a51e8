"""Factor a sum: `P.R1 + P.R2 + ..` is `P.(R1 + R2 + ..)`, for a core P of leaves that several products share.

The residues R become one new leaf z. What ties the core to the rest differs from product to product, so z has an axis
for each of these ties:

    an index of the core                                   in z
    the same output index in every product                 that index, where a residue has it; else none
    summed in every product, and in the core alone         none
    otherwise                                              an axis of its own; a product in which it is an output index
                                                           gets an identity matrix between the two
    features of convolutions                               one kernel axis for all of them: strides must be equal, and
                                                           every kernel is placed among zeros at its own offset; the
                                                           kernel of x itself is 1 at the position that it reads
    a kernel that features of the residues slide under     the features, if the windows are equal

so `conv3x3(x, V) + conv1x1(x, W) + x` is `conv3x3(x, V + W placed in the middle + identity placed in the middle)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import gcd, prod
from typing import TypeAlias

from ce_fx.algebra.expression import Expression, Factor, Term, substitute
from ce_fx.algebra.index import Axis, Index, flat
from ce_fx.algebra.program import Eye, Place, Step
from ce_fx.algebra.window import Tap, Window

Names: TypeAlias = Callable[[Index], Index]
"""A new index that resembles another."""


class _No(Exception):
    """There is no exact form; the message says why."""


def factor_out(
    expression: Expression, members: Sequence[int], core: Sequence[int], first: int, fresh: Names
) -> tuple[Term, tuple[Step, ...]] | str:
    """Several products as one product with a new leaf, which is the sum of what is left of each.

    Args:
        expression: a sum of products.
        members: numbers of the products.
        core: leaves that each of them holds once.
        first: the number of the first new leaf.
        fresh: makes an index of a new name and the same size.

    Returns:
        The product, and the steps that define leaves `first` and on; the last of them is the sum. Or a sentence that
        says why there is no exact form.
    """
    out = frozenset(flat(expression.axes))
    try:
        terms = [_apart(expression.terms[member], out, fresh) for member in members]
        terms = _refined(terms, core, out, fresh)
        return _Factoring(terms, tuple(core), out, first, fresh).result()
    except _No as reason:
        return str(reason)


def _apart(term: Term, out: frozenset[Index], fresh: Names) -> Term:
    """The term with names of its own for what is summed."""
    return _renamed(term, {index: (fresh(index),) for index in sorted(term.indices - out)})


def _renamed(term: Term, table: dict[Index, Axis]) -> Term:
    return substitute(Expression((), (term,)), table).terms[0] if table else term


def _refined(terms: list[Term], core: Sequence[int], out: frozenset[Index], fresh: Names) -> list[Term]:
    """The terms with the axes of the core's leaves split alike."""
    for leaf in core:
        for dim in range(len(_factor(terms[0], leaf).axes)):
            axes = [_factor(term, leaf).axes[dim] for term in terms]
            cuts = sorted({cut for axis in axes for cut in _cuts(axis)})
            if any(b % a for a, b in zip(cuts, cuts[1:], strict=False)):
                raise _No("an axis is split in two ways that have no common split")
            terms = [_split(term, axis, cuts, out, fresh) for term, axis in zip(terms, axes, strict=True)]
    return terms


def _cuts(axis: Axis) -> list[int]:
    """Row-major strides at which an axis of several indices is cut."""
    return [prod(index.size for index in axis[n:]) for n in range(1, len(axis))]


def _split(term: Term, axis: Axis, cuts: Sequence[int], out: frozenset[Index], fresh: Names) -> Term:
    windowed = {i for w in term.windows for i in (w.features, w.out, *(t.index for t in w.taps))}
    table: dict[Index, Axis] = {}
    inner = prod(index.size for index in axis)
    for index in axis:
        outer, inner = inner, inner // max(1, index.size)
        here = [cut for cut in reversed(cuts) if inner < cut < outer]
        if here:
            if index in out or index in windowed or index.symbol:
                raise _No("an axis of the result or of a convolution would be split")
            bounds = [outer, *here, inner]
            sizes = [a // b for a, b in zip(bounds, bounds[1:], strict=False)]
            table[index] = tuple(fresh(replace(index, size=size)) for size in sizes)
    return _renamed(term, table)


def _factor(term: Term, leaf: int) -> Factor:
    found = [factor for factor in term.factors if factor.leaf == leaf]
    if len(found) != 1:
        raise _No("a product holds a leaf of the core twice, or not at all")
    return found[0]


@dataclass
class _Residue:
    """What is left of one product, and the kernel of each shared window within it."""

    factors: list[Factor]
    windows: list[Window]
    coefficient: complex | float | int
    names: dict[Index, Axis] = field(default_factory=dict)
    kernels: dict[Index, _Kernel] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kernel:
    """A product's own kernel on a shared window: its taps, and the first position that it reads."""

    taps: tuple[Tap, ...]
    low: int


class _Factoring:
    """One factoring, step by step: the core's indices one after the other, then the residues."""

    def __init__(
        self, terms: Sequence[Term], core: tuple[int, ...], out: frozenset[Index], first: int, fresh: Names
    ) -> None:
        self.terms, self.core, self.out, self.first, self.fresh = terms, core, out, first, fresh
        self.residues = [
            _Residue([f for f in t.factors if f.leaf not in core], list(t.windows), t.coefficient) for t in terms
        ]
        self.steps: list[Step] = []
        self.table: dict[Index, Axis] = {}  # of the first term's core
        self.windows: list[Window] = []
        self.ties: list[Index] = []
        self.kernels: dict[Index, Window] = {}

    def result(self) -> tuple[Term, tuple[Step, ...]]:
        """The product with the new leaf, and the steps that define it."""
        classes = self._classes()
        for ids in self._inner_windows(classes):
            classes.remove(ids)
        for ids in classes:
            if any(self._window(n, ids[n]) for n in range(len(ids))):
                self._positions(ids)
            else:
                self._plain(ids)
        axes = tuple((index,) for index in self._axes())
        held = tuple(map(self._term, self.residues))
        self.steps.append(Expression(axes, held))
        factors = [_factor(self.terms[0], leaf) for leaf in self.core]
        whole = _renamed(Term(tuple(factors)), self.table).factors
        leaf = self.first + len(self.steps) - 1
        return Term((*whole, Factor(leaf, axes)), tuple(self.windows)), tuple(self.steps)

    def _classes(self) -> list[tuple[Index, ...]]:
        """The core's indices, each as the tuple of what it is in every term; their pattern must be the same."""
        lists = [[i for leaf in self.core for i in flat(_factor(term, leaf).axes)] for term in self.terms]
        shapes = {tuple((i.size, i.symbol) for i in indices) for indices in lists}
        if len(shapes) != 1:
            raise _No("a leaf of the core has different axes in two products")
        classes = list(dict.fromkeys(zip(*lists, strict=True)))
        for n in range(len(self.terms)):
            if len({ids[n] for ids in classes}) != len(classes):
                raise _No("the leaves of the core are joined in different ways")
        return classes

    def _window(self, n: int, index: Index) -> Window | None:
        """The window of a term's residue in which an index is the features or a tap."""
        for window in self.residues[n].windows:
            if index == window.features or any(index == tap.index for tap in window.taps):
                return window
        return None

    def _inner_windows(self, classes: Sequence[tuple[Index, ...]]) -> list[tuple[Index, ...]]:
        """Take over the windows whose features and kernels are all in the core; the classes they use up."""
        used: list[tuple[Index, ...]] = []
        for window in self.terms[0].windows:
            inside = [ids for ids in classes if ids[0] in (window.features, *(t.index for t in window.taps))]
            if len(inside) != 1 + len(window.taps):
                continue
            for n, residue in enumerate(self.residues):
                table: dict[Index, Axis] = {ids[0]: (ids[n],) for ids in inside}
                (same,) = _renamed(Term((), (window,)), table).windows
                if same not in residue.windows:
                    raise _No("a convolution within the core has another geometry or place in another product")
                residue.windows.remove(same)
            self.windows.append(window)
            used += inside
        return used

    def _plain(self, ids: tuple[Index, ...]) -> None:
        """An index of the core that no convolution uses."""
        if len(set(ids)) == 1 and ids[0] in self.out:
            return
        alone = [not any(i in f.indices for f in r.factors) for i, r in zip(ids, self.residues, strict=True)]
        if all(alone) and not self.out.intersection(ids):
            return
        tie = self.fresh(ids[0])
        self.table[ids[0]] = (tie,)
        self.ties.append(tie)
        for index, residue in zip(ids, self.residues, strict=True):
            if index not in self.out:
                residue.names[index] = (tie,)
                continue
            if index.symbol:
                raise _No("an identity matrix of a symbolic size")
            residue.factors.append(Factor(self._step(Eye(index.size)), ((index,), (tie,))))

    def _positions(self, ids: tuple[Index, ...]) -> None:
        """An index of the core that is the features, or a kernel, of windows."""
        windows = [self._window(n, index) for n, index in enumerate(ids)]
        taps = [w is not None and i != w.features for i, w in zip(ids, windows, strict=True)]
        if any(taps):
            self._shared_kernel(ids, windows)
            return
        place = {w.out if w is not None else i for i, w in zip(ids, windows, strict=True)}
        if len(place) != 1 or not place <= self.out:
            raise _No("positions of the core are read in different ways")
        (out,) = place
        if any(out in f.indices for residue in self.residues for f in residue.factors):
            raise _No("a residue depends on the positions of a convolution")
        window = next(w for w in windows if w is not None)
        if any(w is not None and (w.transposed or w.circular) for w in windows):
            self._equal_windows(ids, windows)
            return
        if {w.stride if w is not None else 1 for w in windows} != {window.stride}:
            raise _No("convolutions of the core have different strides")
        kernels = [
            _Kernel((), 0) if w is None else _Kernel(tuple(t for t in w.taps if t.index.size > 1), -w.pad)
            for w in windows
        ]
        kept = {i for leaf in self.core for i in _factor(self.terms[0], leaf).indices}
        if any(t.index in kept for k in kernels for t in k.taps) or any(len(k.taps) > 2 for k in kernels):
            raise _No("the kernels on one axis are partly in the core, or more than two")
        low = min(k.low for k in kernels)
        high = max(k.low + sum(t.reach for t in k.taps) for k in kernels)
        step = gcd(*(t.dilation for k in kernels for t in k.taps), *(k.low - low for k in kernels)) or 1
        tie, kernel = self.fresh(ids[0]), self.fresh(Index("k", (high - low) // step + 1))
        self.table[ids[0]] = (tie,)
        shared = Window(tie, out, (Tap(kernel, step),), window.stride, -low)
        self.windows.append(shared)
        self.kernels[kernel] = shared
        for w, own, residue in zip(windows, kernels, self.residues, strict=True):
            if w is not None:
                residue.windows.remove(w)
                ones: dict[Index, Axis] = {t.index: () for t in w.taps if t.index.size == 1}
                residue.factors = [_factor_renamed(f, ones) for f in residue.factors]
            residue.kernels[kernel] = own

    def _equal_windows(self, ids: tuple[Index, ...], windows: Sequence[Window | None]) -> None:
        """Windows that are the same but for their indices, with one kernel in the residue."""
        first = windows[0]
        if first is None or any(w is None or len(w.taps) != 1 for w in windows):
            raise _No("transposed or circular convolutions of different geometry")
        tie, kernel = self.fresh(ids[0]), self.fresh(first.taps[0].index)
        shared = replace(first, features=tie, taps=(Tap(kernel, first.taps[0].dilation),))
        for w, residue in zip(windows, self.residues, strict=True):
            assert w is not None
            if replace(w, features=tie, taps=(Tap(kernel, w.taps[0].dilation),)) != shared:
                raise _No("transposed or circular convolutions of different geometry")
            if w.taps[0].index.size != kernel.size:
                raise _No("transposed or circular convolutions of different geometry")
            residue.windows.remove(w)
            residue.names[w.taps[0].index] = (kernel,)
        self.table[ids[0]] = (tie,)
        self.windows.append(shared)
        self.ties.append(kernel)

    def _shared_kernel(self, ids: tuple[Index, ...], windows: Sequence[Window | None]) -> None:
        """A kernel of the core under features of the residues: equal windows with this one kernel."""
        first = windows[0]
        if first is None or any(w is None or len(w.taps) != 1 for w in windows):
            raise _No("a kernel of the core is not used alike by all products")
        tie = self.fresh(first.features)
        shared = replace(first, features=tie)
        for index, w, residue in zip(ids, windows, self.residues, strict=True):
            assert w is not None
            if replace(w, features=tie, taps=(Tap(ids[0], w.taps[0].dilation),)) != shared:
                raise _No("a kernel of the core is not used alike by all products")
            if w.features.size != tie.size or w.taps[0].index != index:
                raise _No("a kernel of the core is not used alike by all products")
            residue.windows.remove(w)
            residue.names[w.features] = (tie,)
        self.windows.append(shared)
        self.ties.append(tie)

    def _axes(self) -> list[Index]:
        """The new leaf's axes: what is in the result, then the ties, then kernels."""
        inside: set[Index] = set()
        for residue in self.residues:
            inside.update(i for f in residue.factors for i in f.indices)
            inside.update(w.out for w in residue.windows)
        results = [i for i in sorted(self.out) if i in inside]
        return [*results, *self.ties, *self.kernels]

    def _term(self, residue: _Residue) -> Term:
        """A residue as a product over the new leaf's axes."""
        names = dict(residue.names)
        if all(self._fits(kernel, own) for kernel, own in residue.kernels.items()):
            names.update({own.taps[0].index: (kernel,) for kernel, own in residue.kernels.items() if own.taps})
            return _renamed(Term(tuple(residue.factors), tuple(residue.windows), residue.coefficient), names)
        return self._placed(residue)

    def _fits(self, kernel: Index, own: _Kernel) -> bool:
        """Whether a product's kernel is the shared one: one tap of the same size and dilation at the same place."""
        shared = self.kernels[kernel]
        if kernel.size == 1:
            return not own.taps
        return [(t.index.size, t.dilation) for t in own.taps] == [(kernel.size, shared.taps[0].dilation)]

    def _placed(self, residue: _Residue) -> Term:
        """A residue with kernels of its own size, evaluated first and placed among zeros."""
        names = dict(residue.names)
        windows = list(residue.windows)
        natural: dict[Index, tuple[Index | None, int]] = {}  # shared kernel -> own kernel, its step in the shared one
        for kernel, own in residue.kernels.items():
            unit = self.kernels[kernel].taps[0].dilation
            if len(own.taps) == 2:
                step = gcd(*(t.dilation for t in own.taps))
                whole = self.fresh(Index("k", sum(t.reach for t in own.taps) // step + 1))
                a, b = sorted(own.taps, key=lambda t: -t.reach)
                windows.append(
                    Window(a.index, whole, (Tap(b.index, b.dilation // step),), a.dilation // step, transposed=True)
                )
                natural[kernel] = (whole, step // unit)
            else:
                natural[kernel] = (own.taps[0].index, own.taps[0].dilation // unit) if own.taps else (None, 1)
        term = _renamed(Term(tuple(residue.factors), tuple(windows), residue.coefficient), names)
        held = [i for i in self._axes() if i in term.indices and i not in self.kernels]
        inner = [*held, *(index for index, _ in natural.values() if index is not None)]
        leaf = self._step(Expression(tuple((i,) for i in inner), (term,)))
        sizes = tuple(i.size for i in held)
        own_sizes = tuple(1 if index is None else index.size for index, _ in natural.values())
        starts = [(residue.kernels[k].low + self.kernels[k].pad) // self.kernels[k].taps[0].dilation for k in natural]
        if any(i.symbol for i in held):
            raise _No("a kernel with a symbolic size is placed among zeros")
        place = Place(
            leaf,
            (*sizes, *own_sizes),
            (*sizes, *(kernel.size for kernel in natural)),
            (*(1 for _ in held), *(step for _, step in natural.values())),
            (*(0 for _ in held), *starts),
        )
        return Term((Factor(self._step(place), tuple((i,) for i in (*held, *natural))),))

    def _step(self, step: Step) -> int:
        """The number of the leaf that a step defines; equal steps are one."""
        if step not in self.steps:
            self.steps.append(step)
        return self.first + self.steps.index(step)


def _factor_renamed(factor: Factor, table: dict[Index, Axis]) -> Factor:
    return _renamed(Term((factor,)), table).factors[0]
