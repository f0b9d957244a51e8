import copy
import json
import pickle
import sys

import pytest
import torch
from torch import nn

import ce_fx
from ce_fx.nn import ConvEinsum, LayerError, densify, tensorize
from tests.nn.definition import dense_kernel


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding="same", dilation=2, padding_mode="zeros", bias=False)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))) + x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 5, stride=2, padding=(2, 1), padding_mode="reflect")
        self.blocks = nn.Sequential(Block(), Block())
        self.grouped = nn.Conv2d(16, 32, (3, 1), groups=2)
        self.head = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Linear(32, 10)})

    def forward(self, x):
        x = self.grouped(self.blocks(self.stem(x))).mean((2, 3))
        return self.head["b"](torch.relu(self.head["a"](x)))


def images():
    return torch.randn(2, 3, 20, 20)


def test_full_rank_is_the_same_model():
    """At ranks that are large enough the decomposition is exact, so every setting of every layer is kept."""
    model = Net().double().eval()
    x = images().double()
    expected = model(x)
    tensorize(model, "tt", rank=1000, sweeps=20)
    assert len(model.tensorize_report.replaced) == 6
    assert all(layer.error < 1e-9 for layer in model.tensorize_report.replaced), str(model.tensorize_report)
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", ["rtt", "cp", "tucker", "bt", "ht", "rht"])
def test_layers_are_replaced_under_their_names(form):
    model = Net()
    dense = copy.deepcopy(model)
    model.stem.requires_grad_(False)
    model.blocks[0].eval()
    bias = model.head["a"].bias
    assert tensorize(model, form, rate=0.4, sweeps=3) is model
    report = model.tensorize_report
    for name in ("blocks.0.conv", "blocks.1.conv", "grouped", "head.a"):
        new, old = model.get_submodule(name), dense.get_submodule(name)
        assert type(new) is ConvEinsum and new.form == form and new.rate <= 0.4
        (row,) = [layer for layer in report.layers if layer.name == name]
        kernel = dense_kernel(new.string, list(new.factors), new.groups)
        error = (kernel.double() - old.weight).norm() / old.weight.norm()
        assert abs(row.error - error) < 1e-5
        assert 0.1 < row.error < 1
        assert (row.weights_before, row.weights_after) == (old.weight.numel(), new.num_weights)
    assert model.head["a"].bias is bias
    assert model.blocks[0].conv.bias is None
    assert not model.blocks[0].conv.training and model.blocks[1].conv.training
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert (model.stem.stride, model.stem.padding, model.stem.padding_mode) == ((2, 2), (2, 1), "reflect")
    assert (model.grouped.groups, model.blocks[0].conv.dilation) == (2, (2, 2))
    assert model(images()).shape == (2, 10)


def test_the_error_falls_with_the_rate():
    weight = torch.randn(32, 32)
    errors = []
    for rate in (0.1, 0.3, 0.6, 1.0):
        layer = nn.Linear(32, 32)
        layer.weight.data.copy_(weight)
        errors.append(tensorize(layer, "rtt", rate=rate).tensorize_report.layers[0].error)
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.5 and errors[-1] < 0.4


def test_a_model_that_is_a_layer_is_not_changed():
    layer = nn.Linear(8, 6)
    new = tensorize(layer, "cp", rank=6)
    assert type(layer) is nn.Linear and type(new) is ConvEinsum and new.bias is layer.bias
    x = torch.randn(3, 8)
    torch.testing.assert_close(new(x), layer(x), rtol=1e-4, atol=1e-5)
    assert "(the model)" in str(new.tensorize_report)
    back = densify(new)
    assert type(back) is nn.Linear and type(new) is ConvEinsum and back.bias is new.bias
    torch.testing.assert_close(back(x), new(x))


def test_densify_goes_back():
    model = Net().double().eval()
    keys = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    x = images().double()
    tensorize(model, "rtr", rate=0.3, sweeps=2)
    factorised = model(x)
    assert any(isinstance(m, ConvEinsum) for m in model.modules())
    assert densify(model) is model
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == keys
    assert not any(isinstance(m, ConvEinsum) for m in model.modules()) and not hasattr(model, "tensorize_report")
    torch.testing.assert_close(model(x), factorised, rtol=1e-9, atol=1e-9)


def test_densify_keeps_hooks_from_being_lost():
    model = tensorize(Net(), "cp", rank=1, include=["grouped", "head.a"], sweeps=1)
    tensorize(model.blocks, "cp", rank=1, sweeps=1)
    handle = model.head["a"].register_forward_hook(lambda *_: None)
    before = dict(model.named_modules())
    with pytest.raises(LayerError, match="head.a has hooks, which would be lost; remove them first"):
        densify(model)
    assert dict(model.named_modules()) == before and hasattr(model.blocks, "tensorize_report")
    handle.remove()
    densify(model)
    assert not any(isinstance(m, ConvEinsum) or hasattr(m, "tensorize_report") for m in model.modules())


def test_an_error_on_the_way_leaves_the_model_as_it_was(monkeypatch):
    module = sys.modules[tensorize.__module__]
    decompose = module.decompose_

    def fails(layer, weight, **options):
        if tuple(weight.shape) == (10, 32):
            raise torch.linalg.LinAlgError("did not converge")
        return decompose(layer, weight, **options)

    monkeypatch.setattr(module, "decompose_", fails)
    model = Net()
    before = dict(model.named_modules())
    with pytest.raises(torch.linalg.LinAlgError):
        tensorize(model, "cp", rank=1, sweeps=1)
    assert dict(model.named_modules()) == before and not hasattr(model, "tensorize_report")


def test_shared_modules_stay_shared():
    model = nn.Module()
    shared = nn.Linear(16, 16)
    model.first, model.list = shared, nn.ModuleList([shared, nn.Linear(16, 16)])
    tensorize(model, "cp", rate=0.5)
    assert model.first is model.list[0] and type(model.first) is ConvEinsum and model.first is not model.list[1]
    (row, _) = model.tensorize_report.layers
    assert (row.name, row.aliases) == ("first", ("list.0",))
    densify(model)
    assert model.first is model.list[0] and type(model.first) is nn.Linear


@pytest.mark.parametrize(
    ("include", "exclude", "replaced"),
    [
        (None, None, {"stem", "blocks.0.conv", "blocks.1.conv", "grouped", "head.a", "head.b"}),
        ("blocks.*", None, {"blocks.0.conv", "blocks.1.conv"}),
        (nn.Linear, None, {"head.a", "head.b"}),
        ([nn.Linear, "stem"], "head.b", {"head.a", "stem"}),
        (None, [nn.Conv2d], {"head.a", "head.b"}),
        (lambda name, module: module.weight.numel() > 1200, None, {"blocks.0.conv", "blocks.1.conv"}),
        (None, lambda name, module: "." in name, {"stem", "grouped"}),
        ("stem", "stem", set()),
    ],
)
def test_which_layers(include, exclude, replaced):
    model = Net()
    tensorize(model, "cp", rank=1, include=include, exclude=exclude, sweeps=1)
    assert {name for name, module in model.named_modules() if type(module) is ConvEinsum} == replaced
    assert {layer.name for layer in model.tensorize_report.replaced} == replaced
    assert {layer.reason for layer in model.tensorize_report.kept} <= {"not in include", "in exclude"}


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def odd_layers():
    """Layers that cannot be replaced, and why."""
    model = nn.ModuleDict(
        {
            "transposed": nn.ConvTranspose2d(8, 8, 3),
            "subclass": Scaled(8, 8),
            "hooked": nn.Linear(8, 8),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
            "lazy": nn.LazyLinear(8),
            "tied": nn.Linear(8, 8),
            "small": nn.Linear(2, 2),
            "endless": nn.Linear(8, 8),
            "meta": nn.Linear(8, 8, device="meta"),
            "attention": nn.MultiheadAttention(8, 2),
            "patched": nn.Linear(8, 8),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    model["embedding"] = nn.Embedding(8, 8)
    model["tied"].weight = model["embedding"].weight
    nn.init.constant_(model["endless"].weight, float("inf"))
    model["patched"].forward = lambda x: x
    return model


def test_what_stays_and_why():
    model = odd_layers()
    before = dict(model.named_modules())
    tensorize(model, "cp", rate=0.5)
    assert dict(model.named_modules()) == before
    reasons = {layer.name: layer.reason for layer in model.tensorize_report.kept}
    expected = {
        "transposed": "transposed convolutions have no form here",
        "subclass": "Scaled may compute something else than the plain layer",
        "hooked": "it has hooks, which would be lost",
        "normed": "ParametrizedLinear may compute something else",
        "lazy": "its sizes are not known before its first call",
        "tied": "a parameter is shared: tied.weight and embedding.weight",
        "small": "the smallest possible rate is 1",
        "endless": "the kernel has entries that are not finite",
        "meta": "from_weights=False needs none",
        "attention.out_proj": "NonDynamicallyQuantizableLinear may compute something else",
        "patched": "Linear may compute something else",
    }
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reason in reasons[name], (name, reasons[name])
        assert reason in str(model.tensorize_report)


def test_new_weights():
    model = nn.Sequential(nn.Conv1d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 32, 3, device="meta"))
    bias = model[0].bias
    torch.manual_seed(1)
    tensorize(model, "rtt", rate=0.3, from_weights=False)
    assert [layer.error for layer in model.tensorize_report.layers] == [None, None]
    assert model[0].bias is bias
    assert {factor.device.type for factor in model[2].factors} == {"meta"}
    torch.manual_seed(1)
    same = ConvEinsum.of_form("rtt", 32, 32, (3,), rate=0.3)
    assert all(torch.equal(a, b) for a, b in zip(same.factors, model[0].factors, strict=True))


def test_decomposing_leaves_the_generator_alone():
    model = Net()
    state = torch.get_rng_state()
    tensorize(model, "bt", rate=0.4, sweeps=2)
    assert torch.equal(state, torch.get_rng_state())


def test_the_report():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(2, 2))
    tensorize(model, "cp", rate=0.5)
    report = model.tensorize_report
    assert (report.weights_before, report.weights_after) == (1028, 516)
    assert str(report).splitlines()[-1] == ("1 replaced, 1 kept; weights 1028 -> 516 (50.2%), biases not counted")
    data = json.loads(json.dumps(report.to_dict()))
    assert data["layers"][0]["ranks"] == [8] and data["layers"][1]["decision"] == "kept"
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.tensorize_report == report
    empty = tensorize(nn.ReLU())
    assert "no convolution or linear layer" in str(empty.tensorize_report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "rttt"}, "there is no form 'rttt'"),
        ({"rate": 0}, "rate must be a positive number"),
        ({"rate": 0.1, "rank": 2}, "give either rate or rank"),
        ({"include": "stemm"}, "include: no module is named like 'stemm'; there are 'stem'"),
        ({"exclude": "layer*"}, "exclude: no module is named like"),
        ({"include": "blocks"}, r"'blocks' is the name of no .*; 'blocks.\*' names the layers within"),
        ({"exclude": ["stem", "head"]}, "exclude: 'head' is the name of no"),
        ({"exclude": "blocks.0.norm"}, "'blocks.0.norm' is the name of no convolution .*; there are 'stem'"),
        ({"rank": 0}, "rank must be an int of at least 1, or several of these, not 0"),
        ({"rank": 2.5}, "rank must be an int of at least 1, or several of these, not 2.5"),
        ({"rank": (2, True)}, "rank must be an int of at least 1, or several of these, not "),
        ({"include": [3]}, "include: 3 is no name pattern, module class or function"),
        ({"num_factors": 0}, "needs num_factors >= 1"),
    ],
)
def test_bad_options_change_nothing(options, message):
    model = Net()
    before = dict(model.named_modules())
    with pytest.raises(LayerError, match=message):
        tensorize(model, **options)
    assert dict(model.named_modules()) == before and not hasattr(model, "tensorize_report")


def test_a_progress_bar_on_request(capsys):
    tensorize(nn.Sequential(nn.Linear(8, 8)), "cp", rank=1, progress=True)
    assert "tensorize" in capsys.readouterr().err
    tensorize(nn.Sequential(nn.Linear(8, 8)), "cp", rank=1)
    assert capsys.readouterr().err == ""


def test_code_that_reads_the_weights_of_linear_layers_still_works():
    """The fast path of torch's encoder layer hands `linear1.weight` to a fused kernel."""
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    tensorize(model, "cp", rank=16)
    assert {layer.name for layer in model.tensorize_report.replaced} == {"linear1", "linear2"}
    expected = densify(copy.deepcopy(model))(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_optimize_after_tensorize():
    model = tensorize(Net().double().eval(), "cp", rate=0.3, sweeps=2, include="grouped")
    x = images().double()
    torch.testing.assert_close(ce_fx.optimize(model)(x), model(x), rtol=1e-9, atol=1e-9)
