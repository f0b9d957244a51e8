"""The microbenchmark ops: what the model is told of them is what they are."""

import math

import pytest
import torch

from ce_fx.plan.ops import FAMILIES
from ce_fx.tune.instances import DRAW, FASTER, WORK, all_instances, instances


def test_every_family_is_drawn_and_has_its_work():
    assert list(DRAW) == list(WORK) == list(FAMILIES)
    assert [one.op.family for one in all_instances(2)] == [family for family in FAMILIES for _ in range(2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_ops_tell_what_is_computed(family):
    for one in instances(family, 6, seed=3)[:5]:  # the largest would take long
        operands = [torch.ones(shape, device="meta") for shape in one.shapes]
        result = one.compute(*operands)
        sizes = [math.prod(shape) for shape in one.shapes]
        op = one.op
        assert op.family == family
        assert op.elements == sum(sizes) + result.numel()
        if family in ("sum", "copy", "add"):
            assert op.macs == 0 and op.rows == result.numel()
        elif family == "mul":
            assert op.macs == op.rows == result.numel()
        elif family in ("mm", "bmm"):
            assert op.macs == result.numel() * op.reduce
            assert (op.rows, op.columns) == tuple(result.shape[-2:])
        else:
            merges = one.shapes[0][2:] == (3, 1)  # no image is, only the kernel of a pair that becomes one
            window = math.prod(one.shapes[1][2:])
            assert op.macs == (sizes[0] * op.columns * window if merges else result.numel() * op.reduce)


def test_no_two_strata_and_no_two_seeds_are_alike():
    low, high = WORK["conv"]
    found = instances("conv", 7)
    edges = [low * (high / low) ** (n / 7) for n in range(8)]
    for one, least, most in zip(found, edges, edges[1:], strict=False):
        assert least <= one.op.macs < most
    assert [one.op for one in found] == [one.op for one in instances("conv", 7)]
    assert [one.op for one in found] != [one.op for one in instances("conv", 7, seed=1)]


def test_a_step_of_work_that_no_shape_takes_is_not_waited_for():
    found = instances("mm", 30, seed=1, device="cuda")  # one of the last of 30 is out of reach
    assert len(found) == 30
    assert {one.op.family for one in found} == {"mm"}


def test_a_faster_device_gets_larger_work():
    for family in FAMILIES:
        largest = instances(family, 7, device="cuda")[-1].op
        low, high = WORK[family]
        assert (largest.macs or largest.elements) > low * (FASTER * high / low) ** (6 / 7)
