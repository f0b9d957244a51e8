"""Guards on symbolic sizes, beyond which Dynamo captures a graph anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

from torch import SymInt, Tensor

from ce_fx.sizes import known
from ce_fx.tune.ranges import Alternatives, good_sizes

log = logging.getLogger(__name__)

Guards: TypeAlias = Literal["none", "valid", "close"]
"""What may be asked of symbolic sizes: nothing, that plans are valid, or also that they are close to the best."""


def has_given_ranges(example_inputs: Sequence[Any]) -> bool:
    """Whether the user has given a range for a size: a guard within it would be an error of Dynamo's."""
    ranges = (one for value in example_inputs for one in getattr(value, "_dynamo_dynamic_range", ()))
    return any(one.min is not None or one.max is not None for one in ranges)


def guard_above_one(factors: Iterable[SymInt]) -> None:
    """Add a guard that each factor of a size is above 1, as it is now."""
    for factor in factors:
        if not factor > 1:  # the comparison is the guard
            raise AssertionError(f"planned for {factor} above 1")


def guard_equal(numbers: Iterable[SymInt]) -> None:
    """Add a guard that each symbolic integer is what it is now."""
    for number in numbers:
        int(number)  # this is the guard


def guard_close(regions: Sequence[Alternatives], rest: Callable[[], float], example_inputs: Sequence[Any]) -> None:
    """Add a guard on every symbolic size of the inputs beyond which another plan would be better by a tenth.

    Args:
        regions: those that could be evaluated in another way.
        rest: gives what the rest of the graph costs.
        example_inputs: of the graph.
    """
    sizes = _symbols(example_inputs)
    if not regions or not sizes:
        return
    first = next(iter(sizes.values()))
    values = dict(first.node.shape_env.backed_var_to_val)
    for symbol, (least, most) in good_sizes(regions, rest, values, list(sizes)).items():
        size = sizes[symbol]
        if (least is None or size >= least) and (most is None or size <= most):  # these comparisons are the guards
            log.debug("planned for %s from %s to %s", symbol, least, most)


def _symbols(example_inputs: Sequence[Any]) -> dict[Any, SymInt]:
    """The symbols that are sizes of the inputs, each as the size that it is."""
    sizes: list[Any] = [value for value in example_inputs if isinstance(value, SymInt)]
    sizes += [size for value in example_inputs if isinstance(value, Tensor) for size in value.shape]
    symbolic = [size for size in sizes if isinstance(size, SymInt)]
    return {size.node.expr: size for size in symbolic if size.node.expr.is_symbol and known(size)}
