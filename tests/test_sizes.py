"""Names of symbolic sizes: equal exactly where the sizes are, as far as they are products."""

from math import prod

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv

from ce_fx.sizes import factors, name_of, product

A, B = sympy.symbols("s0 s1", integer=True, positive=True)

NAMES = [
    (A, "s0"),
    (A * B, "s0·s1"),
    (2 * B * A**2, "2·s0·s0·s1"),
    (A + 2, "s0 + 2"),
    (2 * A + 4, "2·s0 + 2"),
    (A * B - B, "s0 - 1·s1"),
    (FloorDiv(A - 1, 2) + 1, str(FloorDiv(A - 1, 2) + 1)),
    (A * FloorDiv(B, 2), f"{FloorDiv(B, 2)}·s0"),
    (FloorDiv(A**2, A, evaluate=False), "s0"),
    (A * FloorDiv(A * B * 4, 2 * A, evaluate=False), "2·s0·s1"),
    (FloorDiv(A * B, 2), str(FloorDiv(A * B, 2))),
    (sympy.Integer(12), ""),
]


@pytest.mark.parametrize(("size", "name"), NAMES, ids=[name for _, name in NAMES])
def test_names(size, name):
    assert name_of(size) == name
    if name:
        number, symbols = factors(name)
        assert product([number, *symbols.elements()]) == name


@pytest.mark.parametrize("size", [size for size, name in NAMES if name and "//" not in name], ids=str)
@pytest.mark.parametrize("values", [(3, 4), (8, 5), (7, 7)])
def test_a_product_of_what_is_named_has_the_value_of_the_size(size, values):
    number, symbols = factors(name_of(size))
    places = dict(zip(("s0", "s1"), values, strict=True))
    named = [eval(name, {}, places) ** times for name, times in symbols.items()]
    assert prod([number, *named]) == size.subs({A: values[0], B: values[1]})


def test_products():
    assert product([]) == 1 and product([2, 3]) == 6
    assert product(["s1", 2, "s0", "3·s0"]) == "6·s0·s0·s1"
