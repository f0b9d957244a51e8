"""Odd models: Python control flow, odd inputs and outputs, hooks, parametrisations, shared parts, changing state.

Each is run as a view and by the registered backend, beside an untouched copy of itself: values, gradients of parameters
and of inputs, buffers and the type of what comes out are those of the copy.
"""

import dataclasses
from collections import namedtuple

import torch
from torch import nn

import ce_fx
import ce_fx.handing_on
from ce_fx.report import Report
from ce_fx.report.graph import together
from ce_fx.watch import break_of

OPTIONS = {"objective": "flops", "tune": False}


Pair = namedtuple("Pair", "low high")


@dataclasses.dataclass
class Result:
    """What a model returns."""

    y: torch.Tensor
    loss: torch.Tensor | None = None
    steps: int = 0


class Chain(nn.Module):
    """`x @ a @ b`, whose written order costs more than `x @ (a @ b)` on many rows."""

    def __init__(self, size=12, out=2):
        super().__init__()
        self.a = nn.Parameter(torch.randn(size, size) / size**0.5)
        self.b = nn.Parameter(torch.randn(size, out) / size**0.5)

    def forward(self, x):
        return x @ self.a @ self.b


class Odd(nn.Module):
    """A chain back to the size of its input, for the models below to call."""

    def __init__(self, out=12):
        super().__init__()
        self.chain = Chain(out=out)
        self.back = Chain(out=out)

    def step(self, x):
        return torch.tanh(self.chain(x))


def linears(out=2):
    return nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, out, bias=False))


def view(model):
    return ce_fx.optimize(model, **OPTIONS)


def backend(model):
    return torch.compile(model, backend="ce_fx", options={"inner": "eager", **OPTIONS})


def leaves(value):
    """The tensors of a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return leaves([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return leaves(list(value.values()))
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (list, tuple)) else []


def shape_of(value):
    """A result with its tensors left out: types, keys, numbers."""
    if isinstance(value, torch.Tensor):
        return "tensor"
    if dataclasses.is_dataclass(value):
        return type(value), [shape_of(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return type(value), [(key, shape_of(item)) for key, item in value.items()]
    return (type(value), [shape_of(item) for item in value]) if isinstance(value, (list, tuple)) else value


def trainable(args):
    return [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]


def same(fast, model, twin, *args, call=None, **kwargs):
    """One call and its backward of a model and of its copy; `call` runs them in another way than by their call."""
    call = call or (lambda run, *args, **kwargs: run(*args, **kwargs))
    ours, theirs = trainable(args), trainable(args)
    got, expected = call(fast, *ours, **kwargs), call(twin, *theirs, **kwargs)
    assert shape_of(got) == shape_of(expected)
    torch.testing.assert_close(leaves(got), leaves(expected))
    for result in (got, expected):
        sum(leaf.square().sum() for leaf in leaves(result)).backward()
    grads = [[a.grad for a in leaves(side)] for side in (ours, theirs)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(
        {name: p.grad for name, p in model.named_parameters()}, {name: p.grad for name, p in twin.named_parameters()}
    )
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
    for module in (model, twin):
        module.zero_grad()
    return got


def is_view(fast):
    """Whether a report can be asked for: not of what the registered backend compiled."""
    return not isinstance(fast, torch._dynamo.OptimizedModule)


HANDED = []
"""What the registered backend has decided in this test, graph by graph, and the graph break that ended each."""


def handing_on_is_seen(monkeypatch):
    """The backend hands on a function only; a view has a report, and does not come this way."""
    handed_on = ce_fx.handing_on.handed_on

    def seen(gm, inputs, options):
        ended = break_of(gm)
        found, running = handed_on(gm, inputs, options)
        HANDED.append((found, ended))
        return found, running

    HANDED.clear()
    monkeypatch.setattr("ce_fx.handing_on.handed_on", seen)


def assert_rewritten(fast, least=1):
    if is_view(fast):
        report = ce_fx.report(fast)
    else:
        report = Report(together([found for found, _ in HANDED]).layers, "", "flops")
    assert report.count("rewritten") >= least and report.mismatches == 0, str(report)


def breaks(fast):
    if is_view(fast):
        return [note for note in ce_fx.report(fast).notes if "graph break" in note]
    assert HANDED
    return [str(ended) for _, ended in HANDED if ended is not None]


def assert_captured_whole(fast):
    assert not breaks(fast)


def assert_break_is_named(fast):
    assert breaks(fast)


class Branchless(Odd):
    def forward(self, x):
        return self.back(self.step(x))
