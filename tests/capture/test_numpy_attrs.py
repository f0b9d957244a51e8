"""NumPy numbers among module attributes become equal Python numbers, and come back."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ce_fx
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
        (np.array([1, 2]), [1, 2]),
        (np.array([], dtype=np.int32), []),
        (np.array([True, False]), [True, False]),
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
        assert owner.value[0].tolist() == [1, 1] and owner.value[1] is before[1]
    elif isinstance(before, np.ndarray) and before.ndim:
        assert type(owner.value) is Ints and owner.value.tolist() == after
        assert all(type(item).__module__ == "builtins" for item in owner.value)
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


def test_ints_are_copied_and_saved():
    ints = Ints((1, 2))
    for twin in (ints, copy.deepcopy(ints), pickle.loads(pickle.dumps(ints))):
        assert type(twin) is Ints and twin.tolist() == [1, 2] and type(twin.tolist()) is list


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


class Sized(nn.Module):
    """Two convolutions that gain, and sizes that are told in an odd way."""

    def __init__(self, after):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 64, 1, bias=False), nn.Conv2d(64, 8, 1, bias=False)
        self.sizes, self.rows, number = np.array([2, 1]), np.array([[1, 2], [3, 4]]), np.int64(2)
        self.scaled, self.split = (lambda x: x * number), (lambda: (number, -1))
        self.after = after

    def forward(self, x):
        return self.after(self, self.second(self.first(x)))


def first_of_shape(model, x):
    shape = list(x.shape)
    return x.reshape([*shape[:2], -1])


WHOLE = {
    "an array of one axis": lambda m, x: F.avg_pool2d(x, (m.sizes * 2).tolist(), tuple(m.sizes)),
    "a lambda over a number": lambda m, x: x.unflatten(1, m.split()),
    "a product by one": lambda m, x: m.scaled(x),
    "a list of the shape": first_of_shape,
}
APART = {
    "an array of two axes": lambda m, x: F.pad(x, m.rows.flatten().tolist()),
    "an array of the shape": lambda m, x: x.reshape(tuple(np.array(list(x.shape)))),
}
"""NumPy's own calculations, which Dynamo takes for those of tensors: a number from one of them ends a graph."""


@pytest.mark.parametrize("after", WHOLE.values(), ids=WHOLE)
def test_odd_sizes_break_no_graph(after):
    assert not breaks_of(after)


@pytest.mark.parametrize("after", APART.values(), ids=APART)
def test_what_numpy_calculates_breaks_a_graph_and_is_right(after):
    assert breaks_of(after)


def breaks_of(after):
    """The graph breaks of a view, whose convolutions are rewritten and whose results are the model's."""
    model, x = Sized(after).double(), torch.randn(2, 8, 12, 12, dtype=torch.float64)
    expected = model(x)
    fast = ce_fx.optimize(model, objective="flops", tune=False)
    torch.testing.assert_close(fast(x), expected)
    report = ce_fx.report(fast)
    assert report.count("rewritten") == 1
    return [note for note in report.notes if "graph break" in note]
