"""Where a decomposition starts: tensorly's, for the forms that it has.

CP, Tucker, tensor train and tensor ring, and the reshaped forms of the same, which are those of the kernel with the
letters of one channel factor as one mode. tensorly is imported when it is first needed, and is not required.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ce_fx.nn.als import Letters, Problem

Cores: TypeAlias = list[tuple[Letters, Any]]


@dataclass(frozen=True)
class _Run:
    """What a method is given: the target with one axis for each mode, and the names and sizes of all letters."""

    target: Any
    modes: Sequence[Letters]
    terms: Sequence[Letters]
    sizes: dict[str, int]
    sweeps: int
    seed: int

    def size(self, letters: Sequence[str]) -> int:
        """The product of the sizes of some letters, 1 of none."""
        return torch.Size([self.sizes[letter] for letter in letters]).numel()

    def ranks(self, term: Letters) -> Letters:
        """The rank letters of a factor."""
        held = {letter for mode in self.modes for letter in mode}
        return tuple(letter for letter in term if letter not in held)


def tensorly_start(form: str, problem: Problem, sweeps: int, seed: int) -> list[Tensor] | None:
    """The target as tensorly decomposes it.

    Args:
        form: a key of `ce_fx.nn.FORMS`.
        problem: the target and the terms.
        sweeps: of its alternating methods.
        seed: of its random numbers, where it draws any; NumPy's global generator is left as it is.

    Returns:
        The factors, or None: tensorly is not installed, has no such decomposition or not of these ranks, or the target
        is complex or has a letter of groups.
    """
    if form not in _METHODS or problem.target.is_complex():
        return None
    try:
        import tensorly
    except ImportError:
        return None
    modes = [mode for term in problem.terms if (mode := tuple(x for x in term if x in problem.letters))]
    order = [problem.letters.index(letter) for mode in modes for letter in mode]
    if len(set(order)) < len(order):
        return None
    sizes = dict(zip(problem.letters, problem.target.shape, strict=True))
    for term, shape in zip(problem.terms, problem.shapes, strict=True):
        sizes.update(zip(term, shape, strict=True))
    run = _Run(None, modes, problem.terms, sizes, sweeps, seed)
    target = problem.target.permute(order).reshape([run.size(mode) for mode in modes]).cpu().numpy()
    with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a mode is smaller than the rank
        try:
            cores = _METHODS[form](_Run(target, modes, problem.terms, sizes, sweeps, seed))
        except ValueError:  # its ring needs a first mode that is large enough; NumPy's LinAlgError is one, too
            return None
    return _placed(cores, problem, run)


def _placed(cores: Cores, problem: Problem, run: _Run) -> list[Tensor] | None:
    """Cores in the order of the terms, with their axes in the order of the term; None where a rank came out smaller."""
    factors = []
    for term in problem.terms:
        letters, core = next(pair for pair in cores if sorted(pair[0]) == sorted(term))
        tensor = torch.from_numpy(core.copy()).to(problem.target)
        if tensor.numel() < run.size(letters):
            return None
        axes = tensor.reshape([run.sizes[letter] for letter in letters])
        factors.append(axes.permute([letters.index(letter) for letter in term]).contiguous())
    return factors


def _cp(run: _Run) -> Cores:
    from tensorly.decomposition import parafac

    (rank,) = run.ranks(run.terms[0])
    options = {"n_iter_max": run.sweeps, "init": "svd", "random_state": run.seed}
    weights, factors = parafac(run.target, rank=run.sizes[rank], **options)
    factors = [factors[0] * weights, *factors[1:]]
    return [((*mode, rank), factor) for mode, factor in zip(run.modes, factors, strict=True)]


def _tucker(run: _Run) -> Cores:
    """A factor for each term but the last, which is the core, and holds modes that are not compressed, if any."""
    from tensorly.decomposition import partial_tucker

    *leaves, last = run.terms
    ranks = [run.ranks(leaf)[0] for leaf in leaves]
    sizes = [run.sizes[rank] for rank in ranks]
    (core, factors), _ = partial_tucker(
        run.target, rank=sizes, modes=list(range(len(leaves))), n_iter_max=run.sweeps, random_state=run.seed
    )
    rest = tuple(letter for letter in last if letter not in ranks)
    named = [((*mode, rank), factor) for mode, rank, factor in zip(run.modes, ranks, factors, strict=False)]
    return [*named, ((*ranks, *rest), core)]


def _chain(run: _Run, left: Sequence[Letters], right: Sequence[Letters], method: str) -> Cores:
    """Cores (left rank, mode, right rank); the ends of a train have ranks of 1 that are no letters."""
    from tensorly import decomposition

    ranks = [run.size(letters) for letters in (*left, right[-1])]
    cores = getattr(decomposition, method)(run.target, ranks, random_state=run.seed)
    names = [(*a, *mode, *b) for a, mode, b in zip(left, run.modes, right, strict=True)]
    return list(zip(names, cores, strict=True))


def _train(run: _Run) -> Cores:
    ranks = [run.ranks(term) for term in run.terms]
    left: list[Letters] = [(), *(letters[:1] for letters in ranks[1:])]
    return _chain(run, left, [*left[1:], ()], "tensor_train")


def _ring(run: _Run) -> Cores:
    ranks = [run.ranks(term) for term in run.terms]
    return _chain(run, [letters[:1] for letters in ranks], [letters[1:] for letters in ranks], "tensor_ring")


_METHODS: dict[str, Callable[[_Run], Cores]] = {
    "cp": _cp,
    "rcp": _cp,
    "tucker": _tucker,
    "tucker_full": _tucker,
    "rtk": _tucker,
    "tt": _train,
    "rtt": _train,
    "tr": _ring,
    "rtr": _ring,
}
