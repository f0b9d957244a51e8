"""Adapters by peft that are switched, disabled, merged and taken apart after the first call."""

import copy

import pytest
import torch
from torch import nn

from tests.odd.models import assert_rewritten, same

peft = pytest.importorskip("peft")


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted():
    def config(rank, alpha):
        return peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["first", "second"])

    model = peft.get_peft_model(Base(), config(8, 16))
    model.add_adapter("more", config(4, 2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:  # half of them are zero as made, which would hide a mistake
                weight.normal_(0, 0.3)
    return model.double()


CHANGES = {
    "another": lambda m: m.set_adapter("more"),
    "both": lambda m: m.base_model.set_adapter(["default", "more"]),
    "merged": lambda m: m.merge_adapter(),
    "merged safely": lambda m: m.merge_adapter(safe_merge=True),
    "disabled": lambda m: m.base_model.disable_adapter_layers(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_adapters_is_followed(via, x, change):
    model = adapted()
    twin, fast = copy.deepcopy(model), via(model)
    same(fast, model, twin, x)
    assert_rewritten(fast)
    for m in (fast, twin):
        change(m)
    same(fast, model, twin, x)


def test_adapters_that_are_disabled_and_merged_for_a_while(via, x):
    model = adapted()
    twin, fast = copy.deepcopy(model), via(model)
    before = same(fast, model, twin, x)
    with fast.disable_adapter(), twin.disable_adapter():
        assert not torch.allclose(same(fast, model, twin, x), before)
    torch.testing.assert_close(same(fast, model, twin, x), before)
    for step in ("merge_adapter", "unmerge_adapter"):
        for m in (fast, twin):
            getattr(m, step)()
        torch.testing.assert_close(same(fast, model, twin, x), before)
