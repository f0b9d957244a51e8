"""Ranges of sizes in which a plan stays close to the best, for costs that are known."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ce_fx.sizes import assuming, hint
from ce_fx.tune.ranges import good_sizes


def symbolic(*shape):
    """A fake tensor whose sizes are all symbolic."""
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * len(shape))
    return FakeTensorMode(shape_env=ShapeEnv()).from_tensor(torch.empty(shape), symbolic_context=context)


class Region:
    """Two ways with costs that are functions of the sizes; the first is taken."""

    def __init__(self, shape, *ways):
        self.shape, self.ways = shape, ways

    def costs(self):
        sizes = [hint(size) for size in self.shape]
        each = [way(*sizes) for way in self.ways]
        return each[0], min(each)


def ranges(x, *regions, rest=0.0):
    values = x.shape[0].node.shape_env.backed_var_to_val
    symbols = [size.node.expr for size in x.shape]
    found = good_sizes(regions, lambda: rest, values, symbols)
    return [found.get(symbol) for symbol in symbols]


def test_a_plan_with_a_fixed_part_loses_at_small_sizes():
    x = symbolic(100, 7)
    region = Region(x.shape, lambda n, m: 200 + n, lambda n, m: 4 * n)  # the second is better below 67
    assert ranges(x, region)[1] is None
    least, most = ranges(x, region)[0]
    assert most is None
    assert 58 <= least <= 62  # (200 + n) / 4n = 1.1 at 58.8


def test_a_plan_without_one_loses_at_large_sizes():
    x = symbolic(40)
    ((least, most),) = ranges(x, Region(x.shape, lambda n: 4 * n, lambda n: 200 + n))
    assert least is None
    assert 72 <= most <= 75  # 4n / (200 + n) = 1.1 at 75.9


def test_a_small_part_of_a_graph_is_no_reason():
    x = symbolic(40)
    assert ranges(x, Region(x.shape, lambda n: 4 * n, lambda n: 200 + n), rest=1e6) == [None]


def test_a_plan_that_was_never_the_best_by_prediction_is_compared_with_itself():
    """It was measured to be the best: what counts is how much worse it becomes."""
    x = symbolic(40)
    assert ranges(x, Region(x.shape, lambda n: 2.0 * n, lambda n: 1.0 * n)) == [None]


def test_the_best_way_all_along_has_no_border():
    x = symbolic(40)
    assert ranges(x, Region(x.shape, lambda n: n, lambda n: n + 1)) == [None]


def test_sizes_that_are_assumed_hold_inside_only():
    x = symbolic(6, 8)
    size, other = x.shape
    values = dict(size.node.shape_env.backed_var_to_val)
    with assuming({**values, size.node.expr: type(values[size.node.expr])(9)}):
        assert (hint(size), hint(other), hint(size * other + 1), hint(3)) == (9, 8, 73, 3)
    assert (hint(size), hint(size * other)) == (6, 48)
    with pytest.raises(KeyError), assuming(values):
        raise KeyError
    assert hint(size) == 6
