"""Modules that a traced graph calls are written out where that changes nothing."""

import pytest
import torch
from torch import nn

import ce_fx
from ce_fx.capture.modules import OPENED, open_modules

MADE = {
    nn.Conv1d: (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9)),
    nn.Conv2d: (lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), (2, 4, 9, 8)),
    nn.Conv3d: (lambda: nn.Conv3d(2, 3, 2), (2, 2, 5, 4, 6)),
    nn.Linear: (lambda: nn.Linear(5, 7), (3, 5)),
    nn.Bilinear: (lambda: nn.Bilinear(5, 5, 7), (3, 5)),
    nn.Identity: (lambda: nn.Identity(), (3, 5)),
    nn.Flatten: (lambda: nn.Flatten(), (3, 5, 2)),
    nn.Unflatten: (lambda: nn.Unflatten(1, (2, 3)), (4, 6)),
    nn.Upsample: (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 4, 5)),
    nn.AvgPool1d: (lambda: nn.AvgPool1d(2), (2, 3, 8)),
    nn.AvgPool2d: (lambda: nn.AvgPool2d(2, padding=1), (2, 3, 8, 6)),
    nn.AvgPool3d: (lambda: nn.AvgPool3d(2), (2, 3, 4, 4, 4)),
}


class Holds(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x) if isinstance(self.layer, nn.Bilinear) else self.layer(x)


@pytest.mark.parametrize("kind", OPENED, ids=lambda kind: kind.__name__)
def test_a_module_is_what_it_calls(kind):
    make, shape = MADE[kind]
    gm, x = torch.fx.symbolic_trace(Holds(make())), torch.randn(shape)
    expected = gm(x)
    assert open_modules(gm)
    assert not gm.graph.find_nodes(op="call_module")
    gm.graph.lint()
    torch.testing.assert_close(gm(x), expected, rtol=0, atol=0)


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def hooked():
    layer = nn.Linear(5, 5)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(5),
        lambda: nn.Dropout(0.5),
        lambda: nn.ConvTranspose1d(2, 2, 1),
        lambda: Own(5, 5),
        hooked,
    ],
)
def test_what_may_compute_something_else_stays_a_module(make):
    graph = torch.fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    assert not open_modules(torch.fx.GraphModule(Holds(make()), graph))


def test_a_traced_network_is_rewritten_and_still_switches_modes():
    model = nn.Sequential(
        nn.Conv2d(4, 32, 1, bias=False), nn.Conv2d(32, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
    ).double()
    gm, x = torch.fx.symbolic_trace(model), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    new = ce_fx.rewrite(gm, (x,), tune=False, objective="flops")
    assert [name for name, _ in new.named_parameters()] == [name for name, _ in gm.named_parameters()]
    called = [node.target for node in new.graph.find_nodes(op="call_module")]
    assert called == ["2", "3"]
    for training in (True, False):
        results = []
        for each in (gm.train(training), new.train(training)):
            torch.manual_seed(1)
            results.append(each(x))
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_where_nothing_is_gained_the_graph_is_the_same_node_by_node():
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(6, 6)))
    new = ce_fx.rewrite(gm, (torch.randn(2, 3, 8, 8),), tune=False)
    assert [(n.op, str(n.target)) for n in new.graph.nodes] == [(n.op, str(n.target)) for n in gm.graph.nodes]


def test_a_decomposed_export_is_rewritten():
    """Its convolutions are `aten.convolution`, whatever they were."""
    model = nn.Sequential(nn.Conv2d(4, 32, 1, bias=False), nn.Conv2d(32, 4, 3), nn.ReLU()).eval().double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    gm = torch.export.export(model, (x,)).run_decompositions().module()
    assert gm.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default)
    inputs = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        new = ce_fx.rewrite(gm, inputs, tune=False, objective="flops")
        assert sum("conv" in str(node.target) for node in new.graph.nodes) == 1
        torch.testing.assert_close(new(x), model(x), rtol=1e-10, atol=1e-10)
