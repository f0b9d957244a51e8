import pytest
import torch

from ce_fx.nn import FORMS, ConvEinsum


def variance(layer, draws):
    """E[y^2] over draws of the factors and for white inputs, and the standard error of that."""
    drawn = [(layer.reset_parameters(), [f.detach().clone() for f in layer.factors])[1] for _ in range(draws)]
    letters = {x: n for n, x in enumerate(dict.fromkeys(x for term in layer.layout.terms for x in term), 1)}
    operands = [part for n, term in enumerate(layer.layout.terms)
                for part in (torch.stack([each[n] for each in drawn]), [0, *(letters[x] for x in term)])]  # fmt: skip
    kept = [letters[x] for x in (*layer.layout.outputs, *layer.layout.inputs, *layer.layout.conv)]
    kernels = torch.einsum(*operands, [0, *dict.fromkeys(kept)]).double()
    squares = kernels.square().flatten(1).sum(1) / layer.out_channels  # white inputs meet every entry once
    return squares.mean().item(), squares.std().item() / draws**0.5


FORMS_AND_AXES = [(form, dims) for form in FORMS for dims in range(FORMS[form].dims, 4)]


@pytest.mark.parametrize(("form", "dims"), FORMS_AND_AXES)
def test_the_output_has_the_variance_of_a_dense_layer_with_hes_initialisation(form, dims):
    """A dense layer with Var[W] = 2 / fan_in has E[y^2] = 2 E[x^2]."""
    layer = ConvEinsum.of_form(form, 8, 12, (3, 2, 2)[:dims], rank=4)
    got, error = variance(layer, 1000)
    assert abs(got - 2) < 4 * error < 0.5


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("form", "dims"), FORMS_AND_AXES)
def test_variances_make_a_kernel_of_exactly_that_variance(monkeypatch, form, dims, groups):
    """Entries are independent: a kernel of variances is the variance of the kernel."""
    if groups > 1 and not dims:
        pytest.skip("a linear layer has no groups")
    monkeypatch.setattr(torch.nn.init, "normal_", lambda factor, mean, std: factor.data.fill_(std**2))
    options = {"rank": 4, "groups": groups, "dtype": torch.float64}
    kernel = ConvEinsum.of_form(form, 16, 24, (3, 2, 2)[:dims], **options).weight
    each = kernel.detach().flatten(1).sum(1)
    torch.testing.assert_close(each, torch.full_like(each, 2.0))


def test_the_judge_agrees_on_a_dense_layer():
    dense = ConvEinsum("bshw,tshw->bthw|hw", (24, 16, 3, 3))
    got, error = variance(dense, 100)
    x = torch.randn(400, 16, 3, 3)
    assert abs(torch.nn.functional.conv2d(x, dense.weight).square().mean() - got) < 0.2
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
