"""Whether a module of torch functions holds for any size, or wherever no factor of a size is 1."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional

from ce_fx.lower.value import LoweringError
from ce_fx.tune.any_size import read_for_any_size


def images(size=15):
    """Square images of a symbolic size."""
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC, *[DimDynamic.DUCK] * 2])
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return mode.from_tensor(torch.empty(4, 3, size, size), symbolic_context=context)


def strided(size=15):
    """What a strided convolution gives of these."""
    x = images(size)
    with x.fake_mode:
        return torch.empty(x.shape[0], 3, (x.shape[2] - 1) // 2 + 1, (x.shape[2] - 1) // 2 + 1)


def flattened(x):
    """Whether the reshape is a view depends on sizes of 1."""
    return torch.reshape(x, [x.size(0), 3, x.size(2) * x.size(3)])


def written(x):
    """What `flattened` gives, and how it lies."""
    pixels = x.shape[2] * x.shape[3]
    with x.fake_mode:
        return torch.empty(x.shape[0], 3, pixels)


def test_a_guard_is_told():
    x = strided()
    module = symbolic_trace(flattened)
    before = len(x.fake_mode.shape_env.guards)
    with pytest.raises(LoweringError, match="some sizes only"):
        read_for_any_size(module, [x], written(x))
    reading, factors = read_for_any_size(module, [x], written(x), guards=True)
    assert {int(factor.node.hint) for factor in factors} == {4, 8}
    assert str(x.shape[2]) in map(str, factors) and str(x.shape[0]) in map(str, factors)
    assert len(x.fake_mode.shape_env.guards) == before, "nothing is guarded by a reading"
    assert reading.ops


def test_a_size_behind_another_stride_is_asked_for_as_well():
    x = strided(31)

    def again(x):
        return flattened(functional.avg_pool2d(x, 1, 2))

    with x.fake_mode:
        y = functional.avg_pool2d(x, 1, 2)
    factors = read_for_any_size(symbolic_trace(again), [x], written(y), guards=True)[1]
    assert [int(factor.node.hint) for factor in factors] == [4, 16, 8]
    assert str(factors[-1]) == str(y.shape[2])


def test_nothing_is_asked_where_nothing_needs_to_be():
    x = images()
    assert read_for_any_size(symbolic_trace(lambda x: x * 2 + 1), [x], x, guards=True)[1] == ()


def test_a_size_of_one_is_no_size_to_assume_others_by():
    x = strided(2)
    with pytest.raises(LoweringError, match="not for that of now"):
        read_for_any_size(symbolic_trace(flattened), [x], written(x), guards=True)


def test_other_questions_are_none_of_it():
    """A plan that asks whether an image has more than 6 rows does not hold for all that have more than one."""
    x = strided()
    graph = torch.fx.Graph()
    graph.output(graph.call_function(lambda x: x * 2 if x.shape[2] > 6 else x + 1, (graph.placeholder("x"),)))
    with pytest.raises(LoweringError, match="some sizes only .*> 6"):
        read_for_any_size(torch.fx.GraphModule({}, graph), [x], x, guards=True)


@pytest.mark.parametrize("change", [lambda x: x * 2, lambda x: torch.relu(flattened(x)).transpose(0, 1)])
def test_another_layout_is_told(change):
    x = strided()
    with pytest.raises(LoweringError, match="the plan would give"):
        read_for_any_size(symbolic_trace(change), [x], written(x), guards=True)
