"""What lists of ATen nodes cost."""

import pytest
import torch
from torch import nn

from ce_fx.capture.reading import read
from ce_fx.lower.price import ops_of_nodes
from ce_fx.plan.time_model import TimeModel
from ce_fx.tune.cost import cost_of, rest_of_graph

MODEL = TimeModel.default("cpu")


def ops(module, *shapes, grad=False, record=False):
    inputs = [torch.randn(shape, requires_grad=grad) for shape in shapes]
    with torch.set_grad_enabled(grad or record):
        reading = read(torch.fx.symbolic_trace(module), inputs)
    return [op for group in reading.ops.values() for op in group]


def test_multiply_adds_are_counted_as_two_and_gradients_as_often_as_they_are_needed():
    layer = nn.Conv2d(3, 4, 3, bias=False)
    forward = 2 * 2 * 4 * 6 * 6 * 3 * 9
    assert cost_of(ops(layer, (2, 3, 8, 8)), MODEL, 4, training=False).flops == forward
    assert cost_of(ops(layer, (2, 3, 8, 8), grad=True), MODEL, 4, training=True).flops == 3 * forward
    layer.requires_grad_(False)
    assert cost_of(ops(layer, (2, 3, 8, 8), grad=True), MODEL, 4, training=True).flops == 2 * forward


def test_a_bias_is_added_and_not_multiplied():
    layer = nn.Conv2d(3, 4, 3)
    forward = 2 * 2 * 4 * 6 * 6 * 3 * 9
    assert cost_of(ops(layer, (2, 3, 8, 8), grad=True), MODEL, 4, training=True).flops == 3 * forward
    assert cost_of(ops(layer, (2, 3, 8, 8), record=True), MODEL, 4, training=True).flops == 2 * forward
    layer.weight.requires_grad_(False)
    assert cost_of(ops(layer, (2, 3, 8, 8), record=True), MODEL, 4, training=True).flops == forward


def test_a_factor_that_occurs_twice_has_a_gradient_for_each():
    class Square(nn.Module):
        def forward(self, x):
            return x @ x

    assert cost_of(ops(Square(), (5, 5), grad=True), MODEL, 4, training=True).flops == 3 * 2 * 5**3


def test_the_forward_part_is_kept_apart_and_shares_what_is_measured():
    layer = nn.Conv2d(3, 4, 3)
    both = cost_of(ops(layer, (2, 3, 8, 8), grad=True), MODEL, 4, training=True)
    alone = cost_of(ops(layer, (2, 3, 8, 8)), MODEL, 4, training=False)
    assert (both.forward_flops, both.forward_seconds) == (alone.flops, alone.seconds)
    assert (alone.forward_flops, alone.forward_seconds) == (alone.flops, alone.seconds)
    timed = both.timed(2 * both.seconds)
    assert timed.forward_seconds == pytest.approx(2 * both.forward_seconds) and timed.flops == both.flops


def test_the_peak_is_the_largest_result_in_bytes():
    chain = nn.Sequential(nn.Linear(8, 100, bias=False), nn.Linear(100, 3, bias=False))
    assert cost_of(ops(chain, (5, 8)), MODEL, 4, training=False).peak == 5 * 100 * 4


class Elementwise(nn.Module):
    def forward(self, x):
        return torch.sigmoid(torch.relu(x).view(-1).unsqueeze(0))


def test_what_no_formula_knows_moves_its_bytes_and_views_move_none():
    nodes = ops(Elementwise(), (4, 1000))
    names = [str(node.target) for node in nodes]
    assert any("relu" in name for name in names) and any("view" in name for name in names)
    whole = rest_of_graph(nodes, MODEL, 4, training=False)
    working = [node for node in nodes if "relu" in str(node.target) or "sigmoid" in str(node.target)]
    assert whole == pytest.approx(rest_of_graph(working, MODEL, 4, training=False)) and whole > 0
    assert rest_of_graph(nodes, MODEL, 4, training=True) > whole


def test_what_has_a_formula_costs_the_same_outside_of_a_region():
    nodes = ops(nn.Conv2d(3, 4, 3, bias=False), (2, 3, 8, 8))
    assert rest_of_graph(nodes, MODEL, 4, False) == pytest.approx(cost_of(nodes, MODEL, 4, False).seconds)


class Copies(nn.Module):
    def __init__(self, *order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.permute(self.order).contiguous()


@pytest.mark.parametrize(
    ("order", "run"),
    [((0, 1, 3, 2), 1), ((1, 0, 2, 3), 4 * 5), ((0, 2, 1, 3), 5), ((3, 2, 1, 0), 1)],
)
def test_a_copy_reads_as_many_elements_in_a_row_as_stay_in_order(order, run):
    """What a copy costs depends on it: the transpose of the last two dims reads one element at a time."""
    (op,) = ops_of_nodes(ops(Copies(*order), (2, 3, 4, 5)))
    assert (op.family, op.columns, op.elements) == ("copy", run, 2 * 120)


class Sums(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x.sum(self.dim)


@pytest.mark.parametrize(("dim", "run"), [(0, 12), (1, 4), (2, 4), ((0, 1), 4), ((0, 2), 4)])
def test_a_sum_reads_what_lies_behind_its_last_dim_in_a_row(dim, run):
    (op,) = ops_of_nodes(ops(Sums(dim), (2, 3, 4)))
    assert (op.family, op.columns) == ("sum", run)


class Chain(nn.Module):
    """x.A.B, and something that is added."""

    def forward(self, x, a, b, y):
        return (x @ a) @ b + y


def test_nothing_is_computed_again_from_the_last_product_on():
    """Recomputation stops once the operands of the last product are there; additions keep nothing."""
    found = ops(Chain(), (8, 6), (6, 4), (4, 5), (8, 5), grad=True)
    first, second = 8 * 6 * 4, 8 * 4 * 5
    assert cost_of(found, MODEL, 4, training=True).flops == 2 * 3 * (first + second)
    assert cost_of(found, MODEL, 4, training=True, checkpoint=True).flops == 2 * (4 * first + 3 * second)
