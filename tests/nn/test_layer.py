import copy
import pickle
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import ce_fx
from ce_fx.nn import FORMS, ConvEinsum, LayerError
from tests import oracle
from tests.nn.definition import dense_kernel, dense_layer

SIZES = {0: (), 1: (11,), 2: (9, 8), 3: (6, 5, 7)}


def grads(output, tensors):
    """Gradients of a fixed linear function of the output."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return torch.autograd.grad((output * weight).sum(), tensors)


def assert_is_dense(layer, x):
    """Values and gradients of the layer are those of torch's convolution with the kernel multiplied out."""
    x = x.detach().requires_grad_()
    tensors = [x, *layer.parameters()]
    got = layer(x)
    kernel = dense_kernel(layer.string, list(layer.factors), layer.groups)
    expected = dense_layer(layer, x, kernel, layer.bias)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads(got, tensors), grads(expected, tensors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_dense_layer_of_its_kernel(form, dims):
    if dims < FORMS[form].dims:
        pytest.skip("no such form")
    layer = ConvEinsum.of_form(form, 12, 18, (3, 2, 3)[:dims], rank=2, **({"padding": 1} if dims else {}),
                               dtype=torch.float64)  # fmt: skip
    torch.nn.init.normal_(layer.bias)
    assert_is_dense(layer, torch.randn(2, 12, *SIZES[dims], dtype=torch.float64))


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_random_geometries(seed):
    draw = random.Random(seed)
    dims = draw.choice([1, 2, 2, 3])
    groups = draw.choice([1, 1, 2, 3])
    form = draw.choice([name for name in FORMS if dims >= FORMS[name].dims])
    kernel = tuple(draw.randint(1, 3) for _ in range(dims))
    mode = draw.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
    padding = draw.choice([0, 1, tuple(draw.randint(0, 2) for _ in range(dims)), "same", "valid"])
    torch.manual_seed(seed)
    layer = ConvEinsum.of_form(
        form,
        groups * draw.randint(1, 8),
        groups * draw.randint(1, 8),
        kernel,
        rank=1 if form == "interleaved" else draw.randint(1, 3),
        groups=groups,
        num_factors=draw.randint(1, 4),
        stride=1 if padding == "same" else tuple(draw.randint(1, 3) for _ in range(dims)),
        padding=padding,
        dilation=draw.choice([1, tuple(draw.randint(1, 2) for _ in range(dims))]),
        padding_mode=mode,
        bias=draw.random() < 0.7,
        dtype=torch.float64,
    )
    x = torch.randn(draw.randint(1, 3), layer.in_channels, *(draw.randint(5, 9) for _ in range(dims)))
    assert_is_dense(layer, x.double())


def as_module(dense, weight):
    """A torch module without a bias, of a weight."""
    with torch.no_grad():
        dense.weight.copy_(weight.reshape(dense.weight.shape))
    return dense


@pytest.mark.parametrize("rank", [1, 3])
def test_separable_is_a_depthwise_and_a_pointwise_convolution(rank):
    layer = ConvEinsum.of_form("separable", 4, 6, (3, 2), rank=rank, padding=1, bias=False, dtype=torch.float64)
    depth, point = layer.factors  # rshw, rst
    written = torch.nn.Sequential(
        as_module(nn.Conv2d(4, 4 * rank, (3, 2), padding=1, groups=4, bias=False).double(), depth.transpose(0, 1)),
        as_module(nn.Conv2d(4 * rank, 6, 1, bias=False).double(), point.permute(2, 1, 0)),
    )
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), written(x), rtol=1e-10, atol=1e-10)


def test_strips_are_a_column_and_a_row():
    layer = ConvEinsum.of_form("strips", 4, 6, (3, 5), rank=2, padding=(1, 2), bias=False, dtype=torch.float64)
    column, row = layer.factors  # (r1)sh, (r1)tw
    written = torch.nn.Sequential(
        as_module(nn.Conv2d(4, 2, (3, 1), padding=(1, 0), bias=False).double(), column),
        as_module(nn.Conv2d(2, 6, (1, 5), padding=(0, 2), bias=False).double(), row.transpose(0, 1)),
    )
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), written(x), rtol=1e-10, atol=1e-10)


def test_interleaved_is_two_group_convolutions_with_a_shuffle_between():
    """Zhang et al., arXiv 1707.02725: the second one's groups are across those of the first."""
    layer = ConvEinsum.of_form("interleaved", 6, 9, (3, 3), rank=3, padding=1, bias=False, dtype=torch.float64)
    primary, secondary = layer.factors  # (s1)(s2)(t2)hw, (s1)(t1)(t2)
    first = nn.Conv2d(6, 9, 3, padding=1, groups=3, bias=False).double()
    second = nn.Conv2d(9, 9, 1, groups=3, bias=False).double()
    as_module(first, primary.transpose(1, 2))
    as_module(second, secondary.permute(2, 1, 0))
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    shuffled = first(x).unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)
    written = second(shuffled).unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(layer(x), written, rtol=1e-10, atol=1e-10)


def test_more_letters_than_einsum_has():
    layer = ConvEinsum.of_form("rcp", 2**14, 2**3, (3, 3), rank=1, num_factors=14, device="meta")
    assert layer.kernel_size == (3, 3)
    with pytest.raises(LayerError, match="the kernel has 56 letters and torch.einsum 52; use fewer channel factors"):
        ConvEinsum.of_form("rtt", 2**18, 4, (3, 3), rank=1, num_factors=18, device="meta")


@pytest.mark.parametrize(
    ("string", "shapes"),
    [
        ("bshw,rt,rs,rh,rw->bthw|hw", [(4, 6), (4, 5), (4, 3), (4, 2)]),
        ("bscwh,rt,rs,rh,rwc->btcwh|cwh", [(4, 6), (4, 5), (4, 3), (4, 2, 3)]),  # the pipe's letters in another order
        ("nxa,uxya->nya|a", [(1, 3, 4, 3)]),
        ("bshw,rt,rsh,rh,rw,rw->bthw|hw", [(4, 6), (4, 5, 3), (4, 2), (4, 2), (4, 3)]),  # composed kernels
        ("bsh,sh->bsh|h", [(5, 3)]),  # depthwise
        ("bush,ush,tu->btsh|h", [(2, 3, 3), (4, 2)]),  # s is shared, but leads neither
        ("bsuh,sh,ut->bsth|h", [(2, 3), (3, 4)]),
        ("bgsh,gsth->bgth|h", [(2, 3, 4, 3)]),
        ("b(in)(ab),(ab)tu->b(in)tu", None),
        ("bgs,gst->bgt", [(2, 3, 4)]),  # a linear layer with groups is block diagonal
        ("bs,st,t->bt", [(5, 4), (4,)]),
    ],
)
def test_any_string(string, shapes):
    if shapes is None:
        with pytest.raises(LayerError, match="letter 'in' .* is in no factor, so its size is unknown"):
            ConvEinsum(string, (3, 4, 5))
        return
    layer = ConvEinsum(string, *shapes, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    dims = len(layer.kernel_size)
    x = torch.randn(2, layer.in_channels, *(11, 10, 9)[:dims], dtype=torch.float64)
    letters = string[1 : string.index(",") - dims]
    inner = x.reshape(2, *(size_of(letter, string, shapes) for letter in letters), *x.shape[2:])
    expected = oracle.conv_einsum(string, inner, *layer.factors, padding="valid").flatten(1, -1 - dims)
    expected = expected + layer.bias.reshape(-1, *(1 for _ in range(dims)))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.to_dense()(x), expected, rtol=1e-10, atol=1e-10)


def size_of(letter, string, shapes):
    terms = string.partition("->")[0].split(",")[1:]
    return next(
        s for term, shape in zip(terms, shapes, strict=True) for x, s in zip(term, shape, strict=True) if x == letter
    )


@pytest.mark.parametrize("form", ["cp", "rtr", "interleaved"])
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_to_dense_has_the_same_function(form, dims):
    options = {"stride": 2, "padding": 1, "groups": 2, "dilation": 2} if dims else {}
    layer = ConvEinsum.of_form(form, 8, 12, (3,) * dims, rank=2, **options, dtype=torch.float64).eval()
    torch.nn.init.normal_(layer.bias)
    dense = layer.to_dense()
    assert type(dense) is (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dims]
    assert not dense.training and dense.weight.dtype == torch.float64 and dense.weight.requires_grad
    x = torch.randn(3, 8, *SIZES[dims], dtype=torch.float64)
    torch.testing.assert_close(dense(x), layer(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.weight, dense.weight)
    layer.requires_grad_(False)
    assert not layer.to_dense().weight.requires_grad


def test_inputs_without_a_batch_and_with_many_batch_axes():
    conv = ConvEinsum.of_form("rtt", 8, 6, (3, 3), rank=2, padding=1, padding_mode="reflect", dtype=torch.float64)
    x = torch.randn(8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), conv(x[None])[0])
    linear = ConvEinsum.of_form("rtt", 8, 6, rank=2, dtype=torch.float64)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))
    torch.testing.assert_close(linear(x[0, 0]), F.linear(x[0, 0], linear.weight, linear.bias))
    assert linear(x[:0]).shape == (0, 3, 6)


def test_images_that_are_smaller_than_the_kernel():
    layer = ConvEinsum.of_form("cp", 4, 5, (5, 3), rank=3, padding=2, dtype=torch.float64)
    for size in [(2, 2), (1, 7), (4, 1)]:
        assert_is_dense(layer, torch.randn(2, 4, *size, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    layer = ConvEinsum.of_form("rtt", 8, 6, (3, 3), rank=2, padding=1, dtype=dtype)
    x = torch.randn(2, 8, 7, 7, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    tolerance = {torch.complex128: 1e-10, torch.bfloat16: 0.1}.get(dtype, 1e-4)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


def test_autocast_gives_the_dtype_of_a_convolution():
    layer = ConvEinsum.of_form("tt", 16, 6, (3, 3), rank=3, padding=1)
    x = torch.randn(2, 16, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == F.conv2d(x, layer.weight.float(), layer.bias).dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.1)


def test_second_derivatives_and_function_transforms():
    layer = ConvEinsum.of_form("cp", 3, 2, (3,), rank=2, dtype=torch.float64)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))
    parameters = dict(layer.named_parameters())
    each = torch.func.vmap(lambda one: torch.func.functional_call(layer, parameters, (one,)))(x)
    torch.testing.assert_close(each, layer(x))


def test_state_copies_and_pickles():
    layer = ConvEinsum.of_form("rtt", 8, 6, (3, 3), rate=0.5, stride=2, padding=1)
    assert list(layer.state_dict()) == ["bias", "factors.0", "factors.1", "factors.2", "factors.3"]
    x = torch.randn(2, 8, 9, 9)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.factors[0] is not layer.factors[0]
        torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
        assert repr(other) == repr(layer)
    fresh = ConvEinsum.of_form("rtt", 8, 6, (3, 3), rate=0.5, stride=2, padding=1)
    assert not torch.equal(fresh(x), layer(x))
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    assert list(ConvEinsum.of_form("cp", 8, 6, rank=1, bias=False).state_dict()) == ["factors.0", "factors.1"]


def test_devices_and_dtypes_are_those_of_torch():
    layer = ConvEinsum.of_form("cp", 8, 6, (3,), rank=2, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}
    layer = layer.to_empty(device="cpu").double()
    layer.reset_parameters()
    assert layer(torch.randn(1, 8, 4, dtype=torch.float64)).dtype == torch.float64


def test_it_says_what_it_is():
    layer = ConvEinsum.of_form("cp", 8, 6, (3, 3), rank=2, stride=2, padding="valid", groups=2, bias=False)
    assert layer.extra_repr() == (
        "'bgshw,grt,grs,grh,grw->bgthw|hw', 8, 6, kernel_size=(3, 3), form='cp', ranks=(2,), stride=(2, 2), "
        "padding='valid', groups=2, bias=False, weights=52 (0.2407 of dense)"
    )
    assert (
        ConvEinsum("bs,rt,rs->bt", (2, 6), (2, 8)).extra_repr() == "'bs,rt,rs->bt', 8, 6, weights=28 (0.5833 of dense)"
    )


@pytest.mark.parametrize(
    ("string", "shapes", "options", "message"),
    [
        ("bshw,rt,rs->bthw|hw", [(2, 3), (2, 4)], {}, "convolution letter 'h' .* must be in at least two operands"),
        ("bshw,tshw", [(2, 3, 3, 3)], {}, "the string of a layer is 'input,factors->output|letters'"),
        ("b...,t...->bt", [(2, 3)], {}, "without '...'"),
        ("bsh,tsh->bth|h", [(2, 3)], {}, "factor 0 .* has 3 letters and the shape"),
        ("bsh,tsh->bth|h", [(2, 3, 3), (2,)], {}, "has 1 factors, and the shapes of 2 were given"),
        ("bsh,rt,rsh->bth|h", [(2, 3), (3, 3, 3)], {}, "letter 'r' has size 3 in factor 1 but 2 in another"),
        ("bhs,tsh->bth|h", [(2, 3, 3)], {}, "the input of .* must be the batch letter, channel letters, and last"),
        (
            "bsh,tsh->tbh|h",
            [(2, 3, 3)],
            {},
            "the batch letter 'b' .* must come first in the output and be in no factor",
        ),
        ("bsh,btsh->bth|h", [(2, 2, 3, 3)], {}, "the batch letter 'b' .* in no factor"),
        ("bsh,ttsh->bth|h", [(2, 2, 3, 3)], {}, "factor 0 .* has a letter twice"),
        ("bssh,tsh->bth|h", [(2, 3, 3)], {}, "the input of .* has a letter twice"),
        ("bsh,tsh->bth|h", [(2, 3, 0)], {}, "letter 'h' of factor 0 has size 0"),
        ("bsuvwh,tsuvwh->btuvwh|uvwh", [(2, 3, 1, 1, 1, 1)], {}, "convolves 4 letters; a layer has at most 3"),
        ("bsh,tsh->bth|h", [(2, 3, 3)], {"stride": 0}, "stride must be an int of at least 1"),
        ("bsh,tsh->bth|h", [(2, 3, 3)], {"dilation": (1, 2)}, "dilation must be .* one for each of 1 axes"),
        ("bsh,tsh->bth|h", [(2, 3, 3)], {"padding": -1}, "padding must be an int of at least 0"),
        ("bsh,tsh->bth|h", [(2, 3, 3)], {"padding": "full"}, "padding must be .* 'same' or 'valid', not 'full'"),
        ("bsh,tsh->bth|h", [(2, 3, 3)], {"padding": "same", "stride": 2}, "padding='same' needs a stride of 1"),
        ("bsh,tsh->bth|h", [(2, 3, 3)], {"padding_mode": "zero"}, "padding_mode must be one of zeros, reflect"),
        ("bs,ts->bt", [(2, 3)], {"stride": 2}, "is a linear layer: it has no stride"),
    ],
)
def test_what_is_no_layer(string, shapes, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ConvEinsum(string, *shapes, **options)
    assert isinstance(caught.value, ce_fx.CeFxError)


def test_inputs_that_do_not_fit():
    layer = ConvEinsum.of_form("cp", 8, 6, (3, 3), rank=2)
    with pytest.raises(LayerError, match=r"the input has shape \(2, 7, 9, 9\); this layer takes "
                       r"\(batch, channels, height, width\) with 8 channels"):  # fmt: skip
        layer(torch.randn(2, 7, 9, 9))
    with pytest.raises(LayerError, match="this layer takes"):
        layer(torch.randn(9, 9))
    with pytest.raises(LayerError, match=r"takes \(.., channels\) with 8 channels"):
        ConvEinsum.of_form("cp", 8, 6, rank=2)(torch.randn(2, 7))
