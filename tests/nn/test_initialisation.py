import pytest
import torch

from ce_fx.nn import FORMS, ConvEinsum


def variance(layer, draws):
    """E[y^2] over draws of the factors and of white inputs, and the standard error of that."""
    x = torch.randn(16, layer.in_channels, *layer.kernel_size)
    squares = []
    for _ in range(draws):
        layer.reset_parameters()
        x.normal_()
        squares.append(torch.nn.functional.conv2d(x, layer.weight, groups=layer.groups).square().mean())
    squares = torch.stack(squares).double()
    return squares.mean().item(), squares.std().item() / draws**0.5


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_the_output_has_the_variance_of_a_dense_layer_with_hes_initialisation(form, groups):
    """A dense layer with Var[W] = 2 / fan_in has E[y^2] = 2 E[x^2]."""
    layer = ConvEinsum.of_form(form, 16, 24, (3, 3), rank=4, groups=groups)
    got, error = variance(layer, 600)
    assert abs(got - 2) < max(4 * error, 0.1)
    assert error < 0.2


def test_the_judge_agrees_on_a_dense_layer():
    dense = ConvEinsum("bshw,tshw->bthw|hw", (24, 16, 3, 3))
    got, error = variance(dense, 100)
    assert abs(got - 2) < 4 * error < 0.1
    reference = torch.empty(24, 16, 3, 3)
    torch.nn.init.kaiming_normal_(reference, nonlinearity="relu")
    assert abs(dense.weight.std() / reference.std() - 1) < 0.05


def test_composed_kernels_and_complex_factors():
    layer = ConvEinsum("bshw,rtsh,rh,rw->bthw|hw", (3, 5, 6, 3), (3, 3), (3, 2))
    x = torch.randn(64, 6, 5, 2)
    squares = torch.stack([(layer.reset_parameters(), layer(x.normal_()).square().mean())[1] for _ in range(600)])
    assert abs(squares.mean() - 2) < 4 * squares.std() / 600**0.5
    layer = ConvEinsum.of_form("cp", 64, 64, rank=16, dtype=torch.complex64)
    squares = []
    for _ in range(200):
        layer.reset_parameters()
        squares.append(layer(torch.randn(32, 64, dtype=torch.complex64)).abs().square().mean())
    assert abs(torch.stack(squares).mean() - 2) < 0.1


def test_biases_are_zero_and_seeds_are_torchs():
    torch.manual_seed(3)
    first = ConvEinsum.of_form("rtt", 8, 8, (3, 3), rate=0.5)
    torch.manual_seed(3)
    second = ConvEinsum.of_form("rtt", 8, 8, (3, 3), rate=0.5)
    assert first.bias.count_nonzero() == 0
    assert all(torch.equal(a, b) for a, b in zip(first.factors, second.factors, strict=True))
