"""Optimised models that are saved, pickled and copied: weights and options travel, graphs are captured anew."""

import copy
import io
import pickle

import pytest
import torch

import ce_fx
from tests.serve.chains import CHAINS, OPTIONS, assert_rewritten, chain, has_gained, optimised, rewritten


def through_torch(fast):
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"torch.save": through_torch, "pickle": lambda fast: pickle.loads(pickle.dumps(fast)), "copy": copy.deepcopy}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("called", [False, True], ids=["first", "after_a_call"])
@pytest.mark.parametrize("options", [{}, {"fold": True}], ids=["plain", "fold"])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_comes_back_optimised(name, called, options, way):
    model, x, _ = chain(name)
    fast = optimised(model, **options)
    with torch.no_grad():
        expected = fast(x) if called else model(x)
        back = WAYS[way](fast)
        assert type(back) is type(fast)
        assert repr(back).endswith("ce_fx: not captured yet")
        torch.testing.assert_close(back(x), expected, rtol=1e-4, atol=1e-5)
    assert has_gained(back)
    assert "ce_fx: 1 of 1 layers rewritten" in repr(back)
    assert ce_fx.report(back).objective == "flops"
    assert has_gained(fast) is called

    with torch.no_grad():  # the weights are its own
        back.b.weight.mul_(2)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(back(x), expected)


def test_a_model_that_was_optimised_in_place():
    model, x, _ = chain("1d")
    expected = model(x)
    ce_fx.optimize_(model, **OPTIONS)
    model(x)
    assert has_gained(model)
    for way in WAYS.values():
        torch.testing.assert_close(way(model)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", [False, True])
def test_a_state_dict_is_that_of_the_model(fold, tmp_path):
    model, x, _ = chain("2d")
    fast = optimised(model, fold=fold)
    with torch.no_grad():
        expected = fast(x)
        torch.save(fast.state_dict(), tmp_path / "weights.pt")
        weights = torch.load(tmp_path / "weights.pt", weights_only=True)
        assert list(weights) == list(model.state_dict())

        fresh = chain("2d")[0]
        fresh.load_state_dict(weights)
        torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-5)

        for assign in (False, True):
            served = optimised(chain("2d")[0], fold=fold)
            served(x)  # a fold is of the old weights
            served.load_state_dict(weights, assign=assign)
            torch.testing.assert_close(served(x), expected, rtol=1e-4, atol=1e-5)
            assert has_gained(served)


def test_a_whole_model_needs_to_be_trusted():
    model, _, _ = chain("1d")
    file = io.BytesIO()
    torch.save(optimised(model), file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load(file, weights_only=True)


def test_an_exported_program_is_saved_without_the_package(tmp_path):
    model, x, _ = chain("1d")
    program = torch.export.export(optimised(model), (x,))
    torch.export.save(program, tmp_path / "program.pt2")
    back = torch.export.load(tmp_path / "program.pt2")
    assert "ce_fx" not in back.graph_module.code
    torch.testing.assert_close(back.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("door", ["rewrite", "lift"])
def test_a_graph_of_ours_is_copied(name, door):
    model, x, _ = chain(name)
    gm = rewritten(model, x) if door == "rewrite" else ce_fx.lift(model, (x,))
    twin = copy.deepcopy(gm)
    if door == "rewrite":
        assert_rewritten(twin)
    assert [str(n.target) for n in twin.graph.nodes] == [str(n.target) for n in gm.graph.nodes]
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)
        for weight in twin.parameters():
            weight.zero_()
        torch.testing.assert_close(gm(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_rewritten_graph_is_pickled():
    gm = torch.fx.symbolic_trace(lambda x, a, b: x @ a @ b)
    inputs = torch.randn(64, 12), torch.randn(12, 12), torch.randn(12, 2)
    new = ce_fx.rewrite(gm, inputs, **OPTIONS)
    assert new.code != gm.code
    back = pickle.loads(pickle.dumps(new))
    assert "ce_fx" not in back.code
    torch.testing.assert_close(back(*inputs), gm(*inputs), rtol=1e-4, atol=1e-4)
