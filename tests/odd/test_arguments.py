"""Arguments and results of many kinds."""

import copy
import dataclasses
from collections import OrderedDict

import pytest

from tests.odd.models import Odd, Pair, Result, assert_captured_whole, assert_rewritten, same


def test_args_and_kwargs(via, x):
    class Net(Odd):
        def forward(self, *args, scale=1.0, **kwargs):
            y = sum(self.step(x) for x in args)
            for name in sorted(kwargs):
                y = y + self.back(kwargs[name])
            return y * scale

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    same(fast, model, twin, x, x + 1, scale=2.0)
    same(fast, model, twin, x, x + 1, other=x - 1, more=x * 2)
    assert_rewritten(fast, 3)
    assert_captured_whole(fast)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_dict_comes_out(via, x, kind):
    class Net(Odd):
        def forward(self, x):
            y = self.step(x)
            return kind([("y", y), ("more", {"z": [self.back(y), None], "n": 3})])

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_dataclass_comes_out(via, x):
    class Net(Odd):
        def forward(self, x, target=None):
            y = self.step(x)
            return Result(y, None if target is None else (self.back(y) - target).square().mean(), steps=2)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    same(fast, model, twin, x, x + 1)
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)


def test_a_dataclass_goes_in(via, x):
    class Net(Odd):
        def forward(self, given):
            return dataclasses.replace(given, y=self.step(given.y), steps=given.steps + 1)

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x, call=lambda run, x: run(Result(x, steps=4)))
    assert_rewritten(fast)
    assert_captured_whole(fast)


def test_a_namedtuple_comes_out(via, x):
    class Net(Odd):
        def forward(self, x):
            y = self.step(x)
            return Pair(low=y, high=Pair(self.back(y), 1))

    model = Net().double()
    twin, fast = copy.deepcopy(model), via(model)
    assert same(fast, model, twin, x).high.high == 1
    assert_rewritten(fast, 2)
    assert_captured_whole(fast)
