"""Every block of the benchmarks is after ce_fx what it was before, in eval, with folded weights, and in training.

That it is rewritten is not asserted here: it must be the same whether it is or not. Sizes are small, so what pays is
decided by FLOPs in one half of the tests and by predicted time in the other: other regions are rewritten.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ce_fx
from benchmarks.blocks import BLOCKS, Block
from benchmarks.measure import Settings
from benchmarks.results import load
from benchmarks.sums import SumRow, chosen, main, mark, measure, table

pytest.importorskip("peft")

# The large heads are the small ones at these sizes.
ALL = [block for block in BLOCKS.values() if "b5" not in block.name]
HANDS = [(block, name) for block in ALL for name in (*block.orders, *block.once)]
OBJECTIVES = ("flops", pytest.param("time", marks=pytest.mark.slow))
REFUSED = [block for block in ALL if block.refused]
EXACT = 1e-10
"""Of the largest value: float64 throughout, whatever the order."""


def by_name(each: object) -> str:
    return getattr(each, "name", str(each))


def made(block: Block, training: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The block in float64."""
    module, inputs, _ = block(small=True)
    module.double().train(training)
    return module, tuple(x.double().requires_grad_(training) for x in inputs)


def results(run: Callable[..., Tensor], module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The value, and where gradients are on those of inputs and parameters; buffers are left as they were."""
    before = [buffer.clone() for buffer in module.buffers()]
    y = run(*inputs)
    found = [y.detach()]
    if torch.is_grad_enabled():
        leaves = [tensor for tensor in (*inputs, *module.parameters()) if tensor.requires_grad]
        seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        found += torch.autograd.grad(y, leaves, seed)
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), before, strict=True):
            buffer.copy_(value)
    return found


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert float((a - b).abs().max()) <= EXACT * max(1.0, float(b.abs().max()))


def optimised(module: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> nn.Module:
    """The module after its first call; ce_fx has nothing to complain about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = ce_fx.optimize(module, **options)
        fast(*inputs)
    wrong = [str(each.message) for each in caught if "ce_fx" in str(each.message)]
    assert not wrong
    return fast


def assert_sound(fast: nn.Module) -> None:
    report = ce_fx.report(fast)
    assert report.mismatches == 0
    failed = [layer.reason for layer in report.layers if "ce_fx failed" in layer.reason or "a bug" in layer.reason]
    assert not failed


@pytest.mark.parametrize(("block", "hand"), HANDS, ids=by_name)
def test_what_is_written_by_hand_is_the_block(block: Block, hand: str) -> None:
    module, inputs = made(block, training=False)
    with torch.no_grad():
        run = (block.orders.get(hand) or block.once[hand])(module)
        assert_equal([run(*inputs)], [module(*inputs)])


@pytest.mark.parametrize("block", [b for b in ALL if b.orders and b.mode != "forward"], ids=by_name)
def test_what_is_written_by_hand_has_the_gradients_of_the_block(block: Block) -> None:
    module, inputs = made(block, training=True)
    expected = results(module, module, inputs)
    for bind in block.orders.values():
        assert_equal(results(bind(module), module, inputs), expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("block", ALL, ids=by_name)
def test_eval(block: Block, objective: str) -> None:
    module, inputs = made(block, training=False)
    with torch.no_grad():
        expected = results(module, module, inputs)
        fast = optimised(module, inputs, objective=objective)
        assert_equal(results(fast, module, inputs), expected)
    assert_sound(fast)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("block", ALL, ids=by_name)
def test_training(block: Block, objective: str) -> None:
    module, inputs = made(block, training=True)
    expected = results(module, module, inputs)
    before = [buffer.clone() for buffer in module.buffers()]
    fast = ce_fx.optimize(module, objective=objective)
    found = results(fast, module, inputs)
    assert_equal(found, expected)
    assert_equal(list(module.buffers()), before)
    assert_equal(results(fast, module, inputs), expected)
    assert_sound(fast)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("block", ALL, ids=by_name)
def test_folded(block: Block, objective: str) -> None:
    module, inputs = made(block, training=False)
    with torch.no_grad():
        expected = results(module, module, inputs)
        fast = optimised(module, inputs, fold=True, objective=objective)
        assert_equal(results(fast, module, inputs), expected)
        for parameter in module.parameters():
            parameter.mul_(1.25)
        changed = results(module, module, inputs)
        assert_equal(results(fast, module, inputs), changed)
    assert float((changed[0] - expected[0]).abs().max()) > 1e-3
    assert_sound(fast)


@pytest.mark.slow
@pytest.mark.parametrize("block", ALL, ids=by_name)
def test_folded_weights_meet_no_gradient(block: Block) -> None:
    module, inputs = made(block, training=False)
    with torch.no_grad():
        fast = optimised(module, inputs, fold=True, objective="flops")
    inputs = tuple(x.requires_grad_() for x in inputs)
    expected = results(module, module, inputs)
    assert_equal(results(fast, module, inputs), expected)
    assert_sound(fast)


@pytest.mark.parametrize("block", REFUSED, ids=by_name)
def test_what_must_not_become_one_stays_in_two(block: Block) -> None:
    fast = refused(block)
    report = ce_fx.report(fast)
    assert report.flops_after == report.flops_before
    assert sum(bool(layer.expression) for layer in report.layers) == 2
    assert not any(layer.decision == "rewritten" for layer in report.layers)
    assert_sound(fast)


@pytest.mark.parametrize("block", REFUSED, ids=by_name)
def test_the_report_says_why_it_stays_in_two(block: Block) -> None:
    reasons = " / ".join(layer.reason for layer in ce_fx.report(refused(block)).layers)
    assert re.search(block.refused, reasons)


def refused(block: Block) -> nn.Module:
    """The optimised block after some calls: sizes that are taken from the data change, and become symbolic."""
    module, inputs = made(block, training=block.mode == "train")
    with torch.set_grad_enabled(block.mode == "train"):
        fast = optimised(module, inputs, objective="flops")
        for _ in range(4):
            others = tuple(torch.randn_like(x) for x in inputs)
            assert_equal(results(fast, module, others)[:1], results(module, module, others)[:1])
    return fast


@pytest.mark.parametrize("capture", [False, True])
def test_a_size_that_changes_with_the_data_is_followed(capture: bool) -> None:
    module, inputs = made(BLOCKS["refused/size of data"], training=False)
    with torch.no_grad(), torch._dynamo.config.patch(capture_scalar_outputs=capture):
        fast = optimised(module, inputs)
        sizes = set()
        for _ in range(6):
            x = torch.randn_like(inputs[0])
            (y,) = results(fast, module, (x,))
            assert_equal([y], results(module, module, (x,)))
            sizes.add(y.shape[-1])
    assert len(sizes) > 1


FAKE = Settings(rounds=1, budget=0.0, tune=False, small=True)


def test_the_benchmark_measures_a_block_in_both_modes() -> None:
    block = BLOCKS["adapter/lora/conv"]
    forward, train = measure(block, "forward", FAKE, fold=True), measure(block, "train", FAKE)
    assert set(forward.seconds) >= {"written", "ce_fx", "ce_fx fold"}
    assert set(train.seconds) == {"written", "ce_fx", "hand: merged", "hand: bypass"}
    assert forward.difference < 1e-4
    assert train.difference < 1e-4
    assert forward.flops is not None
    assert set(forward.flops) == {"ce_fx", "ce_fx fold"}
    assert forward.gain["ce_fx fold/written"] > 0


def test_blocks_are_chosen_by_name_and_mode() -> None:
    assert [(b.name, mode) for b, mode in chosen("repvgg", "both")] == [("reparameterised/repvgg", "forward")]
    assert [mode for _, mode in chosen("^adapter/lora/conv$", "both")] == ["forward", "train"]
    with pytest.raises(ValueError, match="finds no block"):
        chosen("repvgg", "train")
    with pytest.raises(ValueError, match="no regular expression"):
        chosen("(", "both")


def test_a_block_is_the_same_for_a_seed() -> None:
    block = BLOCKS["reparameterised/repvgg"]
    (one, (x,), mode), (two, (z,), _) = block(3, small=True), block(3, small=True)
    assert mode == "forward"
    assert torch.equal(x, z)
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_the_table_has_its_rows_marks_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sums.json"
    run = main(["--only", "refused/ReLU", "--small", "--rounds", "1", "--tune", "no", "--verbose", "--json", str(path)])
    assert [row.mode for row in run.rows] == ["forward", "train"]
    assert [row.key for row in load(path).rows] == [row.key for row in run.rows]
    assert "bshw,ts->bthw" in capsys.readouterr().out
    gains = {"written": 0.9, "hand: merged": 0.5}
    slow = SumRow("slow", "train", {"written": 1.0, "ce_fx": 1.1, "hand: merged": 0.5}, gains, flops={"ce_fx": (4, 2)})
    assert mark(slow) == "<h"
    assert mark(SumRow("wrong", "train", difference=1.0)) == "?"
    printed = table([slow, SumRow("failed", "train", error="ValueError: no")])
    assert "0.90" in printed
    assert "ValueError: no" in printed


@pytest.mark.parametrize(("name", "stages"), [("repvgg", 1), ("acnet", 1), ("diverse branch", 1), ("mobileone", 2)])
def test_branches_are_one_convolution(name: str, stages: int) -> None:
    """In eval with fold, as re-parameterised by hand.

    The border of what batch norm makes of zero, written over the padding of the diverse branch, is its shift and
    nothing else. MobileOne is a depthwise stage and one of 1x1 convolutions.
    """
    module, inputs = made(BLOCKS[f"reparameterised/{name}"], training=False)
    with torch.no_grad():
        fast = optimised(module, inputs, fold=True, objective="flops")
        layers = [layer for layer in ce_fx.report(fast).layers if layer.expression]
        (gm,) = ce_fx.graph_modules(fast)
    assert [layer.decision for layer in layers] == ["rewritten"] * len(layers)
    products = [node for node in gm.graph.nodes if any(op in str(node.target) for op in ("conv", "mm", "matmul"))]
    assert [node.target for node in products] == [torch.conv2d, torch.bmm][:stages], "a 1x1 convolution may be a matmul"
    others = {node.target for node in gm.graph.nodes if node.op.startswith("call_") and node not in products}
    assert stages > 1 or others <= {torch.relu, functional.relu}
