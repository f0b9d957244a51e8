"""Two models that gain, their inputs, and what tells the rewritten program from the written one."""

import torch
from torch import nn

import ce_fx
from tests.test_dynamic import Factorised1d, Factorised2d

OPTIONS = {"objective": "flops", "tune": False}

CHAINS = {"2d": (Factorised2d, (4, 8, 12, 9), (3, 8, 17, 9)), "1d": (Factorised1d, (8, 16, 30), (3, 16, 41))}
"""Name -> class, a shape to capture with, and another batch and length."""

WRITTEN = 3
"""The fewest convolutions in the forward of one of them; rewritten it has one."""


def chain(name):
    """A model in eval mode, an input, and one of another size."""
    kind, shape, other = CHAINS[name]
    return kind().eval(), torch.randn(shape), torch.randn(other)


def optimised(model, **options):
    return ce_fx.optimize(model, **{**OPTIONS, **options})


def rewritten(model, x, dynamic_shapes=None):
    """The door of ahead-of-time pipelines: one captured graph, rewritten."""
    gm = ce_fx.capture(model, (x,), dynamic_shapes=dynamic_shapes)
    inputs = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    return ce_fx.rewrite(gm, inputs, **OPTIONS)


def free_sizes():
    """Batch and length of any size; new dimensions for each export."""
    return ({0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("length", min=4, max=256)},)


def convolutions(graph):
    return sum("conv" in str(node.target) for node in graph.nodes if node.op == "call_function")


def assert_rewritten(program):
    """An exported program holds our evaluation, and not what is written."""
    assert convolutions(program.graph) == 1


def has_gained(fast):
    return ce_fx.report(fast).count("rewritten") > 0


class Within(nn.Module):
    """A model that has another one as a part."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).tanh()
