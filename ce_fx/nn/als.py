"""Alternating least squares for any product of factors.

With all factors but one fixed, the best one solves a linear least-squares problem (for CP: Kolda & Bader 2009, section
3.4). Its normal equations are two contractions of small tensors: the Gram matrix of the others, and the target against
the others; the design matrix, as large as the target times the rank, is never formed. Each step is proximal
(Grippo & Sciandrone 2000, section 7): it stays near the last factor where the target does not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import opt_einsum
import torch
from torch import Tensor

Letters = tuple[str, ...]

_PROXIMITY = 1e-7
"""How strongly a factor is held to its last value, relative to the Gram matrix. It decides what the target does not:
without it, unknowns along small eigenvalues grow until large factors cancel, and single precision loses the digits."""

_LARGEST = 512
"""Unknowns that are solved for at once; more are approached by conjugate gradients."""

_STEPS = 12
"""Steps of conjugate gradients in a sweep, from the last sweep's factor."""


@dataclass(frozen=True)
class Problem:
    """A target that a product of factors is to approximate.

    Attributes:
        target: float64 or complex128, its axes in the order of `letters`.
        letters: of the target's axes.
        terms: letters of each factor. Letters that the target lacks are ranks, and are summed.
        shapes: of the factors.
    """

    target: Tensor
    letters: Letters
    terms: tuple[Letters, ...]
    shapes: tuple[tuple[int, ...], ...]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        """The factors multiplied out, in the layout of the target."""
        return _contract(list(zip(factors, self.terms, strict=True)), self.letters)

    def error(self, factors: Sequence[Tensor]) -> float:
        """|target - product| / |target|, or 0 for a target of zeros that is met."""
        scale = self.target.norm()
        error = (self.target - self.product(factors)).norm()
        return float(error / scale) if scale > 0 else float(error)


def split(problem: Problem, letter: str) -> list[Problem]:
    """One problem for each value of a letter that the target and all factors have."""

    def without(letters: Letters) -> Letters:
        return tuple(x for x in letters if x != letter)

    shapes = tuple(
        tuple(size for x, size in zip(term, shape, strict=True) if x != letter)
        for term, shape in zip(problem.terms, problem.shapes, strict=True)
    )
    terms = tuple(without(term) for term in problem.terms)
    targets = problem.target.unbind(problem.letters.index(letter))
    return [Problem(target, without(problem.letters), terms, shapes) for target in targets]


def random_start(problem: Problem, seed: int) -> list[Tensor]:
    """Factors to start from: singular vectors at the leaves, normal entries elsewhere.

    A leaf is a factor of one rank letter and no letter that it shares with other factors otherwise: the leading left
    singular vectors of the target, with the leaf's letters as rows, are the best basis for it (as in the higher-order
    SVD, De Lathauwer et al. 2000).

    Args:
        problem: the target and the terms.
        seed: of a generator of its own; torch's global generators are left as they are.

    Returns:
        One tensor for each term.
    """
    generator = torch.Generator().manual_seed(seed)
    target = problem.target
    start = []
    for term, shape in zip(problem.terms, problem.shapes, strict=True):
        noise = torch.randn(shape, generator=generator, dtype=target.dtype).to(target.device)
        ranks = [letter for letter in term if letter not in problem.letters]
        kept = [letter for letter in term if letter in problem.letters]
        others = [letter for other in problem.terms if other is not term for letter in other]
        if len(ranks) == 1 and kept and not set(kept) & set(others):
            _fill_leaf(noise, problem, term, kept, ranks[0])
        start.append(noise)
    return start


def _fill_leaf(leaf: Tensor, problem: Problem, term: Letters, kept: Sequence[str], rank: str) -> None:
    """Overwrite as much of a leaf as there are singular vectors."""
    rows = [problem.letters.index(letter) for letter in kept]
    unfolded = problem.target.movedim(rows, list(range(len(rows)))).flatten(0, len(rows) - 1).flatten(1)
    tall = unfolded.shape[0] > unfolded.shape[1]
    frame, small = torch.linalg.qr(unfolded) if tall else (None, unfolded)
    basis = torch.linalg.eigh(small @ small.mH)[1].flip(1)  # columns, the largest first
    basis = basis if frame is None else frame @ basis
    place = leaf.movedim([term.index(letter) for letter in kept], list(range(len(kept))))
    count = min(basis.shape[1], place.shape[-1])
    place[..., :count] = basis[:, :count].reshape(*place.shape[:-1], count)


def fit(problem: Problem, start: Sequence[Tensor], sweeps: int, tolerance: float = 1e-6) -> list[Tensor]:
    """Improve factors by alternating least squares.

    Args:
        problem: the target and the terms.
        start: factors to begin with.
        sweeps: how often every factor is solved for, at most.
        tolerance: stop when a sweep lowers the squared relative error by less than this share of it.

    Returns:
        Factors of equal norms whose product is nearer to the target than that of `start`, or as near.
    """
    power = float(problem.target.norm() ** 2)
    if power == 0:
        return [torch.zeros_like(factor) for factor in start]
    factors = balanced(start)
    updates = [_update(problem, n) for n in range(len(factors))]
    best, least = factors, float("inf")  # of the squared relative error
    for _ in range(sweeps):
        explained = 0.0
        for n, update in enumerate(updates):
            factors[n], explained = update(factors)
        factors = balanced(factors)
        missed = max(power - explained, 0.0) / power
        gain = least - missed
        if gain > 0:
            best, least = list(factors), missed
        if gain <= tolerance * missed or missed < 1e-15:
            break
    return min((best, balanced(start)), key=problem.error)


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors with the same product, all of one norm; zeros stay as they are."""
    norms = torch.stack([factor.norm() for factor in factors])
    if not (norms > 0).all():
        return list(factors)
    mean = norms.log().mean().exp()
    return [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]


@dataclass(frozen=True)
class _Part:
    """The least-squares problem of one factor.

    Attributes:
        term: its letters.
        batch: of these, letters of the target that other factors have, too: a problem for each.
        ranks: letters that the target lacks: the unknowns.
        rows: letters of the target alone: a right-hand side for each.
        others: numbers and letters of the other factors.
        components: sets of others that are connected, and the ranks of each: the Gram matrix of all is the Kronecker
            product of theirs.
    """

    term: Letters
    batch: Letters
    ranks: Letters
    rows: Letters
    others: tuple[tuple[int, Letters], ...]
    components: tuple[tuple[tuple[int, ...], Letters], ...]

    @property
    def axes(self) -> Letters:
        """The letters in the order in which the problem is solved."""
        return (*self.batch, *self.ranks, *self.rows)


def _part(problem: Problem, n: int) -> _Part:
    term = problem.terms[n]
    others = tuple((k, other) for k, other in enumerate(problem.terms) if k != n)
    elsewhere = {letter for _, other in others for letter in other}
    batch = tuple(x for x in term if x in problem.letters and x in elsewhere)
    rows = tuple(x for x in term if x in problem.letters and x not in elsewhere)
    ranks = tuple(x for x in term if x not in problem.letters)
    groups: list[set[int]] = []
    for k, other in others:
        joined = [g for g in groups if any(set(other) & set(problem.terms[m]) - set(batch) for m in g)]
        groups = [g for g in groups if g not in joined] + [{k}.union(*joined)]
    components = tuple(
        (tuple(sorted(g)), tuple(x for x in ranks if any(x in problem.terms[m] for m in g))) for g in groups
    )
    return _Part(term, batch, ranks, rows, others, components)


def _update(problem: Problem, n: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, float]]:
    """The function that solves for factor n: it gives the factor, and how much of |target|^2 the product explains."""
    part = _part(problem, n)
    sizes = dict(zip(part.term, problem.shapes[n], strict=True))
    largest = max(prod(sizes[x] for x in ranks) for _, ranks in part.components) if part.components else 1
    back = [part.axes.index(letter) for letter in part.term]

    def update(factors: Sequence[Tensor]) -> tuple[Tensor, float]:
        conjugate = [(factors[k].conj().resolve_conj(), letters) for k, letters in part.others]
        right = _contract([(problem.target, problem.letters), *conjugate], part.axes)
        start = factors[n].permute([part.term.index(letter) for letter in part.axes])
        if largest > _LARGEST:
            solution, explained = _approached(problem, part, factors, conjugate, right, start)
        else:
            solution, explained = _solved(problem, part, factors, right, start)
        return solution.permute(back), explained

    return update


def _solved(
    problem: Problem, part: _Part, factors: Sequence[Tensor], right: Tensor, start: Tensor
) -> tuple[Tensor, float]:
    """The best factor near the last one: proximal least squares, in the eigenvectors of the components' Grams."""
    values = right.new_ones((), dtype=right.real.dtype)
    bases = []
    for members, ranks in part.components:
        pairs = [(factors[k].conj().resolve_conj(), problem.terms[k]) for k in members]
        primed = [(factors[k], _primed(problem.terms[k], problem.letters)) for k in members]
        gram = _contract([*pairs, *primed], (*part.batch, *ranks, *_primed(ranks, ())))
        lead, sizes = gram.shape[: len(part.batch)], gram.shape[len(part.batch) : len(part.batch) + len(ranks)]
        own, basis = torch.linalg.eigh(gram.reshape(*lead, prod(sizes), prod(sizes)))
        kept = [sizes[ranks.index(letter)] if letter in ranks else 1 for letter in part.ranks]
        values = values * own.clamp(min=0).reshape(*lead, *kept, *(1 for _ in part.rows))
        bases.append((basis, ranks))

    def turned(tensor: Tensor, back: bool = False) -> Tensor:
        for basis, ranks in bases:
            tensor = _along(tensor, part, ranks, (basis if back else basis.mH).__matmul__)
        return tensor

    known, last = turned(right), turned(start)
    dims = tuple(range(len(part.batch), len(part.axes)))
    added = _PROXIMITY * (values.amax(dims, keepdim=True) if dims else values) + torch.finfo(values.dtype).tiny
    solution = last + (known - values * last) / (values + added)
    return turned(solution, back=True), 2 * _inner(known, solution) - _inner(solution, values * solution)


def _along(tensor: Tensor, part: _Part, ranks: Letters, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of matrices (batch, ranks, all else), applied to a tensor with the part's axes."""
    order = [*part.batch, *ranks, *(x for x in (*part.ranks, *part.rows) if x not in ranks)]
    moved = tensor.permute([part.axes.index(letter) for letter in order])
    first, last = len(part.batch), len(part.batch) + len(ranks)
    matrices = moved.reshape(*moved.shape[:first], prod(moved.shape[first:last]), prod(moved.shape[last:]))
    return function(matrices).reshape(moved.shape).permute([order.index(letter) for letter in part.axes])


def _approached(
    problem: Problem,
    part: _Part,
    factors: Sequence[Tensor],
    conjugate: Sequence[tuple[Tensor, Letters]],
    right: Tensor,
    start: Tensor,
) -> tuple[Tensor, float]:
    """A better factor by some steps of conjugate gradients (Hestenes & Stiefel 1952) on the normal equations."""
    primed = [(factors[k], _primed(letters, problem.letters)) for k, letters in part.others]
    inner = (*part.batch, *_primed(part.ranks, ()), *part.rows)

    def gram(tensor: Tensor) -> Tensor:
        return _contract([*conjugate, *primed, (tensor, inner)], part.axes)

    solution = start
    image = gram(solution)
    rest = right - image
    direction, power = rest, _inner(rest, rest)
    for _ in range(_STEPS):
        if power <= 1e-30 * _inner(right, right):
            break
        turned = gram(direction)
        step = power / _inner(direction, turned)
        solution, image, rest = solution + step * direction, image + step * turned, rest - step * turned
        before, power = power, _inner(rest, rest)
        direction = rest + power / before * direction
    return solution, 2 * _inner(right, solution) - _inner(solution, image)


def _primed(letters: Letters, kept: Sequence[str]) -> Letters:
    """The letters of a second copy: all but the kept ones are others."""
    return tuple(x if x in kept else x + "'" for x in letters)


def _inner(a: Tensor, b: Tensor) -> float:
    """The real part of the scalar product."""
    return float((a.conj() * b).sum().real)


def _contract(operands: Sequence[tuple[Tensor, Letters]], output: Letters) -> Tensor:
    """One contraction in the order that opt_einsum finds."""
    arguments = [x for tensor, letters in operands for x in (tensor, letters)]
    result: Tensor = opt_einsum.contract(*arguments, output, optimize="auto")
    return result
