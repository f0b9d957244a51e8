"""Audits of what cannot run, and what their titles and rows say."""

import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ce_fx
from tests.audit.zoo import Attention, Written, made


class Net(nn.Module):
    """Layers that gain, that don't, and what is no layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, 2, 3)
        sizes = (16, 64), (64, 2), (2, 8)
        self.wide = nn.Sequential(*(nn.Linear(*pair, bias=False) for pair in sizes))

    def forward(self, image, mask=None, *, scales=()):
        x = torch.relu(self.stem(image)).mean((2, 3))
        x = self.wide(x)
        for scale in scales:
            x = x * scale
        return x if mask is None else x.masked_fill(mask, 0)


NOTE = "nothing was run, so times are predicted only and no rewrite was verified"


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_fake_weights_are_counted_as_real_ones(train, inside):
    with FakeTensorMode() as mode:
        fake, x = Net().eval(), torch.randn(64, 3, 64, 64)
        report = ce_fx.audit(fake, (x,), train=train, objective="flops") if inside else None
    report = report or ce_fx.audit(fake, (x,), train=train, objective="flops")
    real = ce_fx.audit(Net().eval(), (torch.randn(64, 3, 64, 64),), train=train, objective="flops")
    assert [layer.flops_after for layer in report.layers] == [layer.flops_after for layer in real.layers]
    assert [layer.decision for layer in report.layers] == [layer.decision for layer in real.layers]
    assert any(NOTE in note for note in report.notes) and not any(NOTE in note for note in real.notes)
    assert not any(layer.measured for layer in report.layers) and report.time_before > 0
    assert mode is not None and not fake.training


def test_a_model_far_too_large_to_run():
    with FakeTensorMode():
        model, x = nn.Linear(1 << 20, 1 << 20, bias=False), torch.randn(1 << 20, 1 << 20)
    report = ce_fx.audit(model, (x,), train=False, tune=True)
    assert report.flops_before == 2 * (1 << 60)


def test_the_meta_device():
    with torch.device("meta"):
        model, x = Net().eval(), torch.randn(2, 3, 32, 32)
    report = ce_fx.audit(model, (x,))
    assert report.flops_before > 0 and any(NOTE in note for note in report.notes) and ", meta " in report.title


class Watching(TorchDispatchMode):
    """Sees every op and changes none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_around_an_audit_does_not_hide_the_model():
    with Watching():
        report = ce_fx.audit(Net().eval(), (torch.randn(2, 3, 32, 32),), objective="flops")
    assert report.count("rewritten") == 1


def test_inputs_are_named_as_the_forward_names_them():
    scales = [torch.ones(8), torch.ones(1)]
    mask = torch.zeros(8, dtype=torch.bool)
    report = ce_fx.audit(Net().eval(), (torch.randn(2, 3, 32, 32),), {"mask": mask, "scales": scales})
    assert report.title.endswith("image: 2x3x32x32, mask: 8 bool, scales[0]: 8, scales[1]: 1")
    assert report.about["inputs"]["mask"] == "8 bool" and report.about["model"] == "Net"


def test_one_tensor_may_stand_for_a_tuple():
    assert ce_fx.audit(nn.Linear(4, 2), torch.randn(3, 4)).title.endswith("input: 3x4")


def test_the_kind_has_the_geometry_of_a_convolution():
    stem, wide = ce_fx.audit(Net().eval(), (torch.randn(2, 3, 32, 32),), objective="flops").layers
    assert (stem.kind, stem.decision, stem.can_change) == ("Conv2d 7x7/2", "kept", False)
    assert (wide.decision, wide.can_change) == ("rewritten", True)
    assert wide.written == ("linear", "linear", "linear")
    (product,) = wide.products
    names = [operand.name for operand in product.operands]
    assert names[1:] == ["wide.0.weight", "wide.1.weight", "wide.2.weight"], names
    assert product.flops == wide.flops_after and product.dense is not None
    assert [step.string for step in product.steps] == list(wide.plan)


def test_attention_is_a_row_with_its_flops_and_no_speedup_comes_from_it():
    report = ce_fx.audit(Attention().eval(), (torch.randn(2, 9, 16),))
    (row,) = [layer for layer in report.layers if layer.reason == "not multilinear"]
    assert row.flops_before == 2 * 2 * 2 * 9 * 9 * 16 and not row.can_change
    ops = {one.op: one.count for one in report.elsewhere}
    assert ops["gelu"] == ops["layer_norm"] == 1
    assert "gelu 1" in str(report)


def test_what_counts_the_batches_of_a_batch_norm_is_no_layer():
    report = ce_fx.audit(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (torch.randn(2, 3, 8, 8),), train=True)
    assert [(layer.name, layer.decision, layer.flops_before) for layer in report.layers[1:]] == [("1", "refused", 0)]
    assert "statistics" in report.layers[1].reason


def test_what_is_in_no_module_goes_by_the_line_that_it_stands_on():
    model, x = made("chain of matrices")
    (row,) = ce_fx.audit(model.eval(), (x,)).layers
    assert re.fullmatch(r"matmul at zoo\.py:\d+", row.name)
    report = ce_fx.audit(model.eval(), (x,))
    assert row.name in report.to_text(depth=1), "and is folded into nothing"


def test_bytes_and_ops_elsewhere_add_up():
    report = ce_fx.audit(Written().eval(), (torch.randn(2, 9, 16),))
    (softmax,) = report.elsewhere
    assert (softmax.op, softmax.count, softmax.bytes) == ("softmax", 1, 2 * 4 * 2 * 9 * 9)
    assert report.bytes > softmax.bytes and report.time_elsewhere == softmax.seconds > 0


@torch.library.custom_op("ce_fx_audit::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """An op of a user's."""
    return 2 * x


@twice.register_fake
def _(x):
    return torch.empty_like(x)


class Mystery(nn.Module):
    """Between two layers something that nobody knows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(twice(self.a(x)))


def test_what_could_not_be_counted_is_a_question_mark_with_a_reason():
    report = ce_fx.audit(Mystery().eval(), (torch.randn(3, 8),), objective="flops")
    (row,) = report.uncounted
    assert row.decision == "refused" and row.flops_after is None and "twice" in row.reason
    assert report.flops_before == sum(layer.flops_before for layer in report.layers if layer is not row) > 0
    assert " + ?" in str(report) and f"?: not counted, and in no total: {row.name}" in str(report)


class Factors(nn.Module):
    """Three factors, met by an input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 30)), nn.Parameter(torch.randn(30, 2))

    def forward(self, x, *, y):
        return x @ self.a @ self.b + torch.relu(y) @ self.a @ self.b


class Masked(nn.Module):
    """A product of as many rows as the data say, and one of all."""

    def __init__(self):
        super().__init__()
        self.some, self.all = nn.Linear(8, 2), nn.Linear(8, 8)

    def forward(self, x):
        return self.some(x[x[:, 0] > 0]).sum() + self.all(x)


def test_a_size_that_only_the_data_say_is_a_question_mark():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        report = ce_fx.audit(Masked().eval(), (torch.randn(30, 8),))
    some = next(layer for layer in report.layers if layer.name == "some")
    assert some.flops_before is None and "only known when it runs" in some.reason
    assert report.flops_before == 2 * 30 * 8 * 8 and "some" in [layer.name for layer in report.uncounted]


def test_operands_go_by_the_names_that_a_user_gave():
    report = ce_fx.audit(Factors().eval(), (torch.randn(64, 8),), {"y": torch.randn(64, 8)}, objective="flops")
    names = {operand.name for layer in report.layers for one in layer.terms for operand in one.operands}
    assert {"input 0", "a", "b"} <= names and any(name.startswith("from relu at test_modes.py:") for name in names)
