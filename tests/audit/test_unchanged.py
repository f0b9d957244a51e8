"""An audit changes nothing, in every mode."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import ce_fx
from tests.models import factorized_conv


class Net(nn.Module):
    """Weights, statistics, dropout, a frozen part, hooks, and a tensor in channels last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.BatchNorm2d(8).eval()
        self.tt = factorized_conv(8, 8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 2)
        self.fc.weight.requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        self.steps += 1
        x = self.frozen(self.norm(self.conv(x)))
        return self.fc(self.drop(torch.relu(self.tt(x)).mean((2, 3))))


def layout(tensor):
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad, tensor.data_ptr()


def seen(model, x):
    """All that may be seen of a model and its input, by value; tensors by their values and by identity."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), "x": x}
    tensors |= {f"{name}.grad": p.grad for name, p in tensors.items() if getattr(p, "grad", None) is not None}
    hooks = [
        [list(table.items()) for name, table in vars(module).items() if name.endswith("_hooks")]
        for module in model.modules()
    ]
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "layouts": {name: (id(tensor), *layout(tensor)) for name, tensor in tensors.items()},
        "versions": {name: tensor._version for name, tensor in model.named_parameters()},
        "keys": list(model.state_dict()),
        "modes": [module.training for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "hooks": hooks,
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
    }


def same(before, after):
    for name in before["values"].keys() | after["values"].keys():
        assert torch.equal(before["values"][name], after["values"][name]), name
    assert torch.equal(before.pop("random"), after.pop("random"))
    del before["values"], after["values"]
    assert before == after


AROUND = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("train", [None, True, False])
def test_an_audit_changes_nothing(around, train):
    model, x = Net().train(), torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    model.frozen.eval()
    model(x).sum().backward()
    calls = []
    model.conv.register_forward_hook(lambda *_: None)
    model.fc.weight.register_hook(calls.append) if model.fc.weight.requires_grad else None
    model.conv.weight.register_hook(calls.append)
    with AROUND[around]():
        before = seen(model, x)
        report = ce_fx.audit(model, (x,), train=train, objective="flops")
        after = seen(model, x)
    same(before, after)
    assert calls == [], "no gradient was computed"
    assert report.training is (train is not False) and report.flops_before > 0
    mode = "forward + backward, train" if report.training else "forward, eval, no grad"
    assert report.title.startswith(f"Net, {mode}, float32")
    assert ("under autocast to bfloat16" in report.title) is (around == "autocast")


def test_a_model_still_trains_as_it_did():
    """Two steps of one optimiser, with an audit between them and without."""

    def losses(audited):
        torch.manual_seed(1)
        model, x = Net().train(), torch.randn(4, 3, 6, 6)
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        found = []
        for _ in range(2):
            loss = model(x).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
            if audited:
                ce_fx.audit(model, (x,), objective="flops")
        return found, model.state_dict()

    (a, state), (b, audited) = losses(False), losses(True)
    assert a == b and all(torch.equal(state[name], audited[name]) for name in state)


def test_a_model_that_fails_is_unchanged():
    model, x = Net().train(), torch.randn(2, 5, 6, 6)
    before = seen(model, x)
    with pytest.raises(RuntimeError):
        ce_fx.audit(model, (x,))
    same(before, seen(model, x))
