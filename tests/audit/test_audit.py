"""audit changes nothing and adds up."""

import copy
import json

import torch

import ce_fx
from tests.models import factorized_resnet18


def state(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.grad for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        torch.get_rng_state(),
        [sorted(vars(m)) for m in model.modules()],
        [type(getattr(m, "stride", None)) for m in model.modules()],
    )


def test_audit_changes_nothing_and_adds_up():
    model = factorized_resnet18(num_classes=10, width=16).train()
    model.bn1.eval()
    x = torch.randn(2, 3, 32, 32)
    before = state(model)
    report = ce_fx.audit(model, (x,), train=False, objective="flops")
    after = state(model)
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])
    assert before[5:] == after[5:]
    assert report.flops_before == sum(layer.flops_before for layer in report.layers)
    assert report.flops_after < report.flops_before
    names = [layer.name for layer in report.layers]
    assert names[0] == "conv1" and "layer1.0.conv1" in names and names[-1] == "fc"
    assert report.count("rewritten") >= 8


def test_written_flops_agree_with_torchs_counter():
    """Forward, over all layers: multiply-adds counted as 2; only broadcast products may differ, and there are none."""
    from torch.utils.flop_counter import FlopCounterMode

    model = factorized_resnet18(num_classes=10, width=16).eval()
    x = torch.randn(2, 3, 32, 32)
    report = ce_fx.audit(model, (x,))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert report.flops_before == counter.get_total_flops()


def test_training_counts_forward_and_backward():
    """Each op once forward and once for every gradient; the input needs none."""
    first, second = torch.nn.Conv2d(2, 3, 3, bias=False), torch.nn.Conv2d(3, 4, 3, bias=False)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    x = torch.randn(1, 2, 8, 8)
    forward = ce_fx.audit(model, (x,), train=False)
    both = ce_fx.audit(model, (x,), train=True)
    first, second = (layer.flops_before for layer in forward.layers)
    assert [layer.flops_before for layer in both.layers] == [2 * first, 3 * second]


def test_text_and_dict_forms():
    model = factorized_resnet18(num_classes=10, width=16).eval()
    report = ce_fx.audit(model, (torch.randn(2, 3, 32, 32),), objective="flops")
    text = report.to_text(width=160)
    assert report.to_text() == str(report)
    assert text.startswith("ce_fx audit: ResNet18, forward, eval, no grad, float32, cpu")
    assert "1 multiply-add = 2 FLOPs" in text
    assert "layer1.0.conv2     FactorizedConv" in text and "same plan as layer1.0.conv1" in text
    assert "total (18 layers)" in text
    data = json.loads(report.to_json())
    assert data == report.to_dict()
    assert data["flops_before"] == report.flops_before and len(data["layers"]) == 18
    layer = copy.copy(report.layers[1])
    assert layer.expression.startswith("bshw,") and "|hw + " in layer.expression
    assert len(layer.plan) > 4
