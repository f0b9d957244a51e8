"""Layouts that convolutions tell apart by the strides of dims of size 1."""

import random
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule

from ce_fx.lower.strides import order_of, same_format, same_strides, with_ones


def strided(shape, order, ones):
    """A dense tensor in an order of dims, in which those of size 1 have any stride."""
    x = torch.randn([shape[d] for d in order]).permute([order.index(d) for d in range(len(order))])
    strides = [
        ones.choice([1, 2, 5, 7, 60]) if size == 1 else stride for size, stride in zip(shape, x.stride(), strict=True)
    ]
    return x.as_strided(shape, strides)


@pytest.mark.parametrize("ndim", [3, 4, 5])
def test_a_view_with_the_ones_of_an_order_has_its_format(ndim):
    rng = random.Random(ndim)
    changed = 0
    for order in permutations(range(ndim)):
        shape = [rng.choice([1, 1, 2, 3]) for _ in range(ndim)]
        target = torch.empty([shape[d] for d in order]).permute([order.index(d) for d in range(ndim)])
        x = strided(shape, list(order), rng)
        assert same_strides(x, target)
        graph = Graph()
        ones = tuple(d for d, size in enumerate(shape) if size == 1)
        graph.output(with_ones(graph, graph.placeholder("x"), order_of(target), ones))
        got = GraphModule(torch.nn.Module(), graph)(x)
        assert got.data_ptr() == x.data_ptr() and torch.equal(got, x)
        assert same_strides(got, target) and same_format(got, target)
        changed += not same_format(x, target)
    assert changed


def test_the_format_is_what_torch_takes_it_for():
    rng, seen = random.Random(0), set()
    for _ in range(300):
        shape = [rng.choice([1, 1, 2, 3]) for _ in range(4)]
        x = strided(shape, rng.sample(range(4), 4), rng)
        larger = F.interpolate(x, scale_factor=2)  # its images have no side of size 1
        # two channels at least, or the result does not tell either
        if shape[1] > 1:
            last = larger.stride(1) == 1
            assert same_format(x, torch.empty(larger.shape).to(memory_format=torch.channels_last)) == last
            seen.add(last)
    assert seen == {True, False}
