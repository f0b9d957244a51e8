"""What lists of ATen nodes cost."""

import pytest
import torch
from torch import nn

from ce_fx.capture.reading import read
from ce_fx.plan.time_model import TimeModel
from ce_fx.tune.cost import cost_of, rest_of_graph

MODEL = TimeModel.default("cpu")


def ops(module, *shapes, grad=False):
    inputs = [torch.randn(shape, requires_grad=grad) for shape in shapes]
    with torch.set_grad_enabled(grad):
        reading = read(torch.fx.symbolic_trace(module), inputs)
    return [op for group in reading.ops.values() for op in group]


def test_multiply_adds_are_counted_as_two_and_gradients_as_often_as_they_are_needed():
    layer = nn.Conv2d(3, 4, 3, bias=False)
    forward = 2 * 2 * 4 * 6 * 6 * 3 * 9
    assert cost_of(ops(layer, (2, 3, 8, 8)), MODEL, 4, training=False).flops == forward
    assert cost_of(ops(layer, (2, 3, 8, 8), grad=True), MODEL, 4, training=True).flops == 3 * forward
    layer.requires_grad_(False)
    assert cost_of(ops(layer, (2, 3, 8, 8), grad=True), MODEL, 4, training=True).flops == 2 * forward


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
