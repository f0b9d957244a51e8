"""NumPy numbers among module attributes become equal Python numbers, and come back."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from ce_fx.capture.numpy_attrs import Ints, describe, make_plain, undo
from tests.models import factorized_conv


def module(value):
    owner = nn.Module()
    owner.value = value
    return owner


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.int64(3), 3),
        (np.int8(-3), -3),
        (np.uint16(3), 3),
        (np.longlong(3), 3),
        (np.intc(3), 3),
        (np.bool_(True), True),
        (np.array([1, 2]), (1, 2)),
        (np.array([], dtype=np.int32), ()),
        (np.array([True, False]), (True, False)),
        (np.array(7), 7),
        ((1, np.int64(2), "a"), (1, 2, "a")),
        ([np.int64(1), 2.5], [1, 2.5]),
        ([np.array([1, 1]), np.array([0.5])], None),
    ],
)
def test_equal_python_values(before, after):
    owner = module(before)
    (entry,) = make_plain(owner)
    if after is None:  # a list keeps what has no equal Python number
        assert owner.value[0] == (1, 1) and owner.value[1] is before[1]
    else:
        assert owner.value == after
        kinds = [type(item) for item in owner.value] if isinstance(after, tuple | list) else [type(owner.value)]
        assert all(kind.__module__ == "builtins" for kind in kinds)
        assert not isinstance(after, tuple | list) or isinstance(owner.value, type(after))
    assert (entry.owner, entry.name, entry.path) == (owner, "value", "value")
    undo([entry])
    assert owner.value is before


@pytest.mark.parametrize(
    "value",
    [
        3,
        (1, 2),
        "same",
        None,
        np.float64(0.5),
        np.float32(0.5),
        np.array([0.5, 1.5]),
        np.eye(2, dtype=np.int64),
        np.array(["a"]),
        np.complex64(1j),
        {"a": np.int64(1)},
    ],
    ids=repr,
)
def test_everything_else_is_left_alone(value):
    owner = module(value)
    assert make_plain(owner) == []
    assert owner.value is value


def test_a_tuple_that_is_left_alone_keeps_its_class():
    class Pair(tuple):
        pass

    value = Pair((np.int64(1), np.int64(2)))
    owner = module(value)
    assert make_plain(owner) == []
    assert owner.value is value


def test_paths_name_the_module_and_shared_modules_are_changed_once():
    shared = module(np.int64(1))
    tree = nn.Sequential(shared, nn.Sequential(module(np.array([2, 2])), shared))
    changed = make_plain(tree)
    assert [entry.path for entry in changed] == ["0.value", "1.0.value"]
    assert make_plain(tree) == []
    (line,) = describe(changed)
    assert line == "NumPy values of attributes value in 2 modules became equal Python numbers"
    assert describe([]) == ()


def test_undo_keeps_what_was_set_since():
    owner, other = module(np.int64(1)), module(np.int64(1))
    changed = make_plain(nn.Sequential(owner, other))
    owner.value = 5
    del other.value
    undo(changed)
    assert owner.value == 5
    assert not hasattr(other, "value")
    undo(changed)
    assert owner.value == 5


def test_parameters_buffers_and_modules_are_not_touched():
    owner = nn.BatchNorm2d(3)
    before = {name: id(value) for name, value in vars(owner).items()}
    assert make_plain(owner) == []
    assert {name: id(value) for name, value in vars(owner).items()} == before


def test_ints_are_a_tuple_that_lists():
    ints = Ints((1, 2))
    assert ints == (1, 2) and ints.tolist() == [1, 2] and type(ints.tolist()) is list
    assert hash(ints) == hash((1, 2))
    for twin in (copy.deepcopy(ints), pickle.loads(pickle.dumps(ints))):
        assert twin == ints and twin.tolist() == [1, 2]


@pytest.mark.parametrize("factorization", ["tt", "cp", "tucker"])
@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
def test_a_factorized_conv_gives_the_same_values_in_one_graph(factorization, implementation):
    layer = factorized_conv(8, 8, 2, factorization, 0.5, implementation).double()
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    expected = layer(x)
    changed = make_plain(layer)
    assert changed
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    explained = torch._dynamo.explain(layer)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    undo(changed)
    assert all(entry.owner.__dict__[entry.name] is entry.before for entry in changed)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
