"""Exported programs of optimised models, and what AOTInductor makes of them."""

import logging

import pytest
import torch
from torch import nn

import ce_fx
from tests.serve.chains import (
    CHAINS,
    WRITTEN,
    Within,
    assert_rewritten,
    chain,
    convolutions,
    free_sizes,
    has_gained,
    optimised,
    rewritten,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
names = pytest.mark.parametrize("name", CHAINS)
sizes = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


def check(program, model, x, other, dynamic):
    run = program.module()
    for given in (x, other) if dynamic else (x,):
        torch.testing.assert_close(run(given), model(given), **CLOSE)


@names
@sizes
class TestAView:
    @pytest.mark.parametrize("called", [False, True], ids=["first", "after_calls"])
    @pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
    def test_its_program_is_the_rewritten_one(self, name, dynamic, called, grad):
        model, x, other = chain(name)
        fast = optimised(model)
        with torch.set_grad_enabled(grad):
            if called:
                fast(x), fast(other)
            program = torch.export.export(fast, (x,), dynamic_shapes=free_sizes() if dynamic else None)
            assert_rewritten(program)
            assert set(program.state_dict) == set(model.state_dict())
            check(program, model, x, other, dynamic)

    def test_strict_export_is_right_and_as_written(self, name, dynamic):
        """There Dynamo reads the model's own code: nothing of ours is asked."""
        model, x, other = chain(name)
        shapes = free_sizes() if dynamic else None
        program = torch.export.export(optimised(model), (x,), dynamic_shapes=shapes, strict=True)
        assert convolutions(program.graph) >= WRITTEN
        check(program, model, x, other, dynamic)

    @pytest.mark.parametrize("strict", [False, True])
    def test_what_rewrite_gives_is_exported_as_it_is(self, name, dynamic, strict):
        model, x, other = chain(name)
        shapes = free_sizes() if dynamic else None
        program = torch.export.export(rewritten(model, x, shapes), (x,), dynamic_shapes=shapes, strict=strict)
        assert_rewritten(program)
        assert set(program.state_dict) == set(model.state_dict())
        check(program, model, x, other, dynamic)


@pytest.mark.parametrize("options", [{"fold": True}, {"inner": "inductor"}, {"dynamic": True}, {"dynamic": False}])
def test_options_that_are_for_calls_leave_exports_as_they_are(options):
    model, x, other = chain("1d")
    with torch.no_grad():
        program = torch.export.export(optimised(model, **options), (x,), dynamic_shapes=free_sizes())
    assert_rewritten(program)
    check(program, model, x, other, dynamic=True)


def test_a_view_goes_on_as_before():
    model, x, other = chain("1d")
    fast = optimised(model)
    before = fast(x)
    for _ in range(10):  # more than Dynamo's limit for one piece of code
        assert_rewritten(torch.export.export(fast, (x,)))
    assert torch.equal(fast(x), before)
    assert len(ce_fx.graph_modules(fast)) == 1
    torch.testing.assert_close(fast(other), model(other))
    assert has_gained(fast)


def test_a_view_inside_another_model_and_a_model_optimised_in_place():
    model, x, other = chain("1d")
    outer = Within(optimised(model))
    program = torch.export.export(outer, (x,), dynamic_shapes=free_sizes())
    assert_rewritten(program)
    assert set(program.state_dict) == {f"inner.{key}" for key in model.state_dict()}
    check(program, outer, x, other, dynamic=True)

    expected = model(x)
    ce_fx.optimize_(model, objective="flops", tune=False)
    program = torch.export.export(model, (x,))
    assert_rewritten(program)
    torch.testing.assert_close(program.module()(x), expected, **CLOSE)
    ce_fx.restore_(model)
    assert convolutions(torch.export.export(model, (x,)).graph) >= WRITTEN


def test_capture_of_a_view_is_rewritten():
    model, x, _ = chain("2d")
    gm = ce_fx.capture(optimised(model), (x,))
    assert_rewritten(gm)
    assert {id(p) for p in gm.parameters()} == {id(p) for p in model.parameters()}
    torch.testing.assert_close(gm(x), model(x), **CLOSE)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = chain("1d")[0]

    def forward(self, x):
        y = self.inner(x)
        return y if x.shape[2] > 20 else y * 2


def test_what_a_model_asks_of_sizes_is_still_checked():
    """A capture inside the capture: what it assumes of sizes has to reach the exported program."""
    x, short = torch.randn(8, 16, 30), torch.randn(8, 16, 12)
    free = ({2: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(optimised(Branching()), (x,), dynamic_shapes=free)
    assert_rewritten(program)
    assert [bounds.lower for bounds in program.range_constraints.values()] == [21]
    with pytest.raises(AssertionError, match="20|21"):
        program.module()(short)
    with pytest.raises(torch._dynamo.exc.UserError, match="length"):
        torch.export.export(optimised(Branching()), (x,), dynamic_shapes=({2: torch.export.Dim("length")},))


def test_statistics_are_updated_once_a_call():
    model = nn.Sequential(chain("2d")[0], nn.BatchNorm2d(8))
    x = torch.randn(4, 8, 12, 9)
    program = torch.export.export(optimised(model), (x,))
    assert_rewritten(program)
    assert int(model[1].num_batches_tracked) == 0
    run = program.module()
    result = run(x)
    assert int(run.get_buffer("1.num_batches_tracked")) == 1  # the model's own
    torch.testing.assert_close(result, model(x), **CLOSE)


def test_a_graph_break_is_exported_as_written_and_said(caplog):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = chain("1d")[0]

        def forward(self, x):
            torch._dynamo.graph_break()
            return self.inner(x)

    model, x = Broken(), torch.randn(8, 16, 30)
    with caplog.at_level(logging.WARNING, "ce_fx.optimize"):
        program = torch.export.export(optimised(model), (x,))
    assert convolutions(program.graph) >= WRITTEN
    assert "Broken is exported as written: Unsupported" in caplog.text
    torch.testing.assert_close(program.module()(x), model(x), **CLOSE)


@pytest.mark.xfail(
    strict=True, reason="strict export empties Dynamo's cache; the next capture has another frame number"
)
def test_a_strict_export_is_no_graph_break():
    model, x, _ = chain("1d")
    fast = optimised(model)
    fast(x)
    torch.export.export(fast, (x,), strict=True)
    fast(x)
    assert not ce_fx.report(fast).notes


def test_a_symbolic_size_may_be_a_factor():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = chain("1d")[0]

        def forward(self, x):
            return self.inner(x) * x.shape[0]

    x = torch.randn(8, 16, 30)
    assert_rewritten(torch.export.export(optimised(Scaled()), (x,), dynamic_shapes=free_sizes()))


def test_errors_of_a_model_are_its_own():
    model, x, _ = chain("1d")
    with pytest.raises(RuntimeError, match="expected input"):
        torch.export.export(optimised(model), (x[:, :3],))


@pytest.mark.slow
@names
@pytest.mark.parametrize("door", ["view", "rewrite"])
def test_ahead_of_time(name, door, tmp_path):
    model, x, other = chain(name)
    shapes = free_sizes()
    with torch.no_grad():
        source = optimised(model) if door == "view" else rewritten(model, x, shapes)
        program = torch.export.export(source, (x,), dynamic_shapes=shapes)
        assert_rewritten(program)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        run = torch._inductor.aoti_load_package(path)
        for given in (x, other):
            torch.testing.assert_close(run(given), model(given), **CLOSE)
