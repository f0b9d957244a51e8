"""A dense kernel as the factors of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ce_fx.nn.als import Problem, fit, random_start, split
from ce_fx.nn.errors import LayerError
from ce_fx.nn.layer import ConvEinsum
from ce_fx.nn.starts import tensorly_start

SWEEPS = 50
STARTS = 3
TRIAL = 9  # a start is tried for one in so many of the sweeps: all of them together take a third
GROUPS = 16


@torch.no_grad()
def decompose_(layer: ConvEinsum, weight: Tensor, *, sweeps: int = SWEEPS, seed: int = 0) -> float:
    """Set the factors of a layer so that its kernel approximates a dense one, in place.

    In float64: from tensorly's decomposition, where it is installed and has one (CP, Tucker, TT, TR and their reshaped
    forms), or else from the best of a few starts of singular vectors and seeded normal entries, by alternating least
    squares over all factors (Kolda & Bader 2009). The factors get equal norms. Torch's and NumPy's global random
    generators are left as they are.

    Args:
        layer: whose factors are set.
        weight: `(out channels, in channels / groups, *kernel size)`, as of the dense layer.
        sweeps: how often every factor is solved for, at most.
        seed: of what is random.

    Returns:
        The relative error `|weight - kernel of the layer| / |weight|`, in Frobenius norms; 0 of a kernel of zeros.

    Raises:
        LayerError: the kernel has another shape, or entries that are not finite.
    """
    expected = layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    if tuple(weight.shape) != expected:
        raise LayerError(f"the kernel has shape {tuple(weight.shape)}, and that of the layer {expected}")
    if not weight.isfinite().all():
        raise LayerError("the kernel has entries that are not finite")
    problem = _problem(layer, weight)
    factors = _decomposed(layer.form, problem, sweeps, seed)
    for factor, value in zip(layer.factors, factors, strict=True):
        factor.copy_(value)
    return problem.error([factor.to(problem.target) for factor in layer.factors])


def _decomposed(form: str, problem: Problem, sweeps: int, seed: int) -> list[Tensor]:
    """The factors for a problem; a few groups have a problem each, many are solved together."""
    group = next((x for x in problem.letters if all(x in term for term in problem.terms)), None)
    if group is not None and problem.target.shape[problem.letters.index(group)] <= GROUPS:
        parts = [_decomposed(form, part, sweeps, seed) for part in split(problem, group)]
        dims = [term.index(group) for term in problem.terms]
        return [torch.stack(factors, dim) for factors, dim in zip(zip(*parts, strict=True), dims, strict=True)]
    start = tensorly_start(form, problem, sweeps, seed)
    return fit(problem, _best_start(problem, sweeps, seed) if start is None else start, sweeps)


def _best_start(problem: Problem, sweeps: int, seed: int) -> list[Tensor]:
    """Of a few random starts the best after some sweeps: rings and block terms have local minima."""
    trials = (fit(problem, random_start(problem, seed + n), max(sweeps // TRIAL, 1)) for n in range(STARTS))
    return min(trials, key=problem.error)


def _problem(layer: ConvEinsum, weight: Tensor) -> Problem:
    """The kernel with one axis for each letter."""
    layout = layer.layout
    groups = layout.grouped if layout.conv else ()
    inputs, outputs = layout.inputs[len(groups) :], layout.outputs[len(groups) :]
    if set(inputs) & set(outputs) or layout.composed:
        raise LayerError(f"no decomposition for {layer.string!r}: its factors share a channel or a kernel letter")
    letters = (*groups, *outputs, *inputs, *layout.conv)
    device = weight.device if weight.device.type in ("cpu", "cuda") else torch.device("cpu")  # others lack float64
    dtype = torch.complex128 if weight.is_complex() else torch.float64
    target = weight.detach().to(device=device, dtype=dtype).reshape(layout.shape(letters))
    return Problem(target, letters, layout.terms, tuple(tuple(factor.shape) for factor in layer.factors))
