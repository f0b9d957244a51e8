"""Families of lines that a program has only if it is asked for them, so that the programs of old seeds stay.

A family is a few functions of a `Writer`, each of which draws an op that torch takes by construction. Its lines are
counted under its name; what a function wraps around them (`Writer.around`) is not.
"""

from collections.abc import Callable, Sequence

from tests.branches.families import kernels, layers, parts, products, space
from tests.branches.writer import Writer

FAMILIES: dict[str, tuple[Callable[[Writer], None], ...]] = {
    "resize": (space.resize,),
    "pool": (space.pool, space.pool, space.adaptive),
    "mean": (space.mean, space.gate),
    "pad": (space.pad, space.pad, space.crop),
    "volume": (space.volume,),
    "norm": (layers.norm, layers.norm, layers.written_norm),
    "scale": (layers.layer_scale, layers.divided),
    "scalar": (layers.scalar,),
    "same": (layers.same,),
    "grouped": (layers.grouped, layers.named_padding),
    "transposed": (layers.transposed,),
    "shared": (layers.shared, layers.tied, layers.one_by_one),
    "kernel": (kernels.structured,),
    "leaf": (kernels.nonlinear,),
    "parts": (parts.split, parts.split, parts.picked, parts.scattered),
    "stack": (parts.stack, parts.stacked_weights),
    "repeat": (parts.repeat,),
    "axes": (parts.axes,),
    "einsum": (products.einsum, products.einsum, products.einsum_of_two),
    "plus": (products.plus,),
    "product": (products.product, products.diagonal),
    "complex": (products.complex_product,),
}
"""By name, the functions of every family."""


def families_of(text: str) -> Sequence[str]:
    """Names from a list with commas; "all" is all of them, nothing is none.

    Raises:
        ValueError: there is no such family.
    """
    names = list(FAMILIES) if text == "all" else [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise ValueError(f"no family {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    return names
