"""conv_einsum against the oracle, and every line of its contract."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

import ce_fx
from tests import oracle
from tests.strategies import calls

CP = "bshw,rt,rs,rh,rw->bthw|hw"
CP_SHAPES = [(2, 4, 6, 6), (3, 5), (3, 4), (3, 3), (3, 3)]


def cp(dtype=torch.float64, grad=False):
    return [torch.randn(shape, dtype=dtype).requires_grad_(grad) for shape in CP_SHAPES]


def fits(call):
    """The call as the package reads it; calls that are refused for their sizes are left to the tests of errors."""
    try:
        ce_fx.contract_path(call.string, *call.shapes, shapes=True, **call.options)
    except ce_fx.ExpressionError as error:
        assume("pad more" not in str(error))
        raise


@pytest.mark.fuzz
@given(calls(), st.sampled_from(["time", "flops", "memory"]), st.sampled_from(["auto", "written", "greedy"]))
def test_values_and_gradients(call, objective, optimize):
    fits(call)
    ours, theirs = call.tensors(requires_grad=True), call.tensors(requires_grad=True)
    got = ce_fx.conv_einsum(call.string, *ours, **call.options, objective=objective, optimize=optimize)
    expected = oracle.conv_einsum(call.string, *theirs, **call.options)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(expected)
    mine = torch.autograd.grad((got * weight).sum(), ours)
    judge = torch.autograd.grad((expected * weight).sum(), theirs)
    for a, b in zip(mine, judge, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.fuzz
@given(calls(most=4))
def test_complex_values(call):
    fits(call)
    tensors = call.tensors(torch.complex128)
    got = ce_fx.conv_einsum(call.string, *tensors, **call.options)
    expected = oracle.conv_einsum(call.string, *tensors, **call.options)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_cp_string_is_a_dense_convolution():
    x, wt, ws, wh, ww = cp()
    kernel = torch.einsum("rt,rs,rh,rw->tshw", wt, ws, wh, ww)
    torch.testing.assert_close(ce_fx.conv_einsum(CP, x, wt, ws, wh, ww), F.conv2d(x, kernel, padding=1))


def test_multi_character_letters_spaces_and_commas_after_the_pipe():
    x, w = torch.randn(2, 3, 7), torch.randn(4, 3, 3)
    expected = F.conv1d(x, w, padding=1)
    got = ce_fx.conv_einsum("b (c1) (l0), t (c1) (l0) -> b t (l0) | (l0)", x, w)
    torch.testing.assert_close(got, expected)
    x, w = torch.randn(2, 3, 7, 6), torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(
        ce_fx.conv_einsum("bshw,tshw->bthw|h,w", x, w, stride={"h": 2}), F.conv2d(x, w, padding=1, stride=(2, 1))
    )


def test_ellipsis_with_a_convolution():
    x, w = torch.randn(2, 5, 3, 7), torch.randn(4, 3, 3)
    expected = F.conv1d(x.reshape(10, 3, 7), w, padding=1).reshape(2, 5, 4, 7)
    torch.testing.assert_close(ce_fx.conv_einsum("...sl,tsl->...tl|l", x, w), expected)


def test_more_than_three_convolution_letters():
    x, w = torch.randn(6, 5, 4, 5, dtype=torch.float64), torch.randn(3, 2, 2, 3, dtype=torch.float64)
    string = "hwde,hwde->hwde|hwde"
    torch.testing.assert_close(ce_fx.conv_einsum(string, x, w), oracle.conv_einsum(string, x, w))


def test_four_letters_whose_kernels_merge_with_dilations():
    x = torch.randn(9, 8, 7, 8, dtype=torch.float64)
    v, w = torch.randn(2, 2, 3, 2, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    string, dilation = "hwde,hwde,hwde->hwde|hwde", {(1, "h"): 2, (2, "h"): 1, (1, "d"): 2, (2, "d"): 3}
    got = ce_fx.conv_einsum(string, x, v, w, dilation=dilation, optimize=[(1, 2), (0, 1)])
    torch.testing.assert_close(got, oracle.conv_einsum(string, x, v, w, dilation=dilation))


def test_features_of_two_letters_in_two_operands():
    x, y = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(ce_fx.conv_einsum("bhw,bhw->bhw|hw", x, y), oracle.conv_einsum("bhw,bhw->bhw|hw", x, y))


@pytest.mark.parametrize("optimize", ["auto", "optimal", "greedy", "written", [(0, 1), (0, 1), (0, 1), (0, 1)]])
def test_every_way_to_choose_an_order(optimize):
    tensors = cp()
    got = ce_fx.conv_einsum(CP, *tensors, optimize=optimize)
    torch.testing.assert_close(got, oracle.conv_einsum(CP, *tensors))


def test_double_backward():
    assert torch.autograd.gradgradcheck(lambda *t: ce_fx.conv_einsum(CP, *t), cp(grad=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    exact = cp()
    tensors = [t.to(dtype) for t in exact]
    got = ce_fx.conv_einsum(CP, *tensors)
    expected = oracle.conv_einsum(CP, *[t.double() for t in tensors])
    assert got.dtype == dtype
    # every intermediate rounds once to the dtype: a handful of roundings of numbers as large as the result
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("optimize", ["auto", "written", [(1, 3), (0, 3), (0, 1), (0, 1)]])
def test_autocast_gives_its_dtype_whatever_the_plan(optimize):
    tensors = cp(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ce_fx.conv_einsum(CP, *tensors, optimize=optimize).dtype == torch.bfloat16
        assert ce_fx.conv_einsum(CP, *[t.double() for t in tensors]).dtype == torch.float64


@pytest.mark.parametrize("string", ["ij,ij->ij", "ij->i", "ij,jk->ik", "ij,kj->ikj", "ij,ij"])
def test_autocast_gives_the_dtype_of_einsum(string):
    tensors = [torch.randn(3, 3) for _ in range(string.count(",") + 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ce_fx.conv_einsum(string, *tensors).dtype == torch.einsum(string, *tensors).dtype


def test_vmap_and_func_grad():
    x, *rest = cp()
    many = torch.stack([x, 2 * x, x + 1])
    function = lambda x: ce_fx.conv_einsum(CP, x, *rest)
    torch.testing.assert_close(torch.func.vmap(function)(many), torch.stack([function(x) for x in many]))
    gradient = torch.func.grad(lambda x: function(x).square().sum())(x)
    leaf = x.clone().requires_grad_()
    function(leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(backend, dynamic):
    def function(*tensors):
        return ce_fx.conv_einsum(CP, *tensors, stride={"h": 2}).relu()

    tensors, again = cp(torch.float32, grad=True), cp(torch.float32, grad=True)
    again = [t.detach().clone().requires_grad_() for t in tensors]
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
    got, expected = compiled(*tensors), function(*again)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    expected.sum().backward()
    for a, b in zip(tensors, again, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    larger = [torch.randn(3, 4, 8, 8), *tensors[1:]]
    torch.testing.assert_close(compiled(*larger), function(*larger))


def test_empty_sizes_give_zeros_and_zero_gradients():
    a, b = torch.randn(2, 0, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    got = ce_fx.conv_einsum("ij,jk->ik", a, b)
    assert torch.equal(got, torch.zeros(2, 4))
    got.sum().backward()
    assert a.grad.shape == (2, 0)
    x, w = torch.randn(0, 3, 8), torch.randn(4, 3, 3)
    assert ce_fx.conv_einsum("bsl,tsl->btl|l", x, w).shape == (0, 4, 8)
    x = torch.full((2, 3), float("inf"))
    assert torch.equal(ce_fx.conv_einsum("ij,jk->ik", x[:, :0], torch.randn(0, 2)), torch.zeros(2, 2))


@pytest.mark.parametrize("string", ["ij->ji", "ii->i", "ii->", "ij->", "ij->i", "i,i", "ij,ij->ij", "ij,kj->ikj"])
def test_few_operands_are_einsum(string):
    shapes = [(3, 3)] * (string.count(",") + 1) if string != "i,i" else [(3,)] * 2
    tensors = [torch.randn(shape) for shape in shapes]
    torch.testing.assert_close(ce_fx.conv_einsum(string, *tensors), torch.einsum(string, *tensors))


def test_plans_are_cached_by_what_matters():
    from ce_fx import conv_einsum as _  # noqa: F401
    from ce_fx.plan import planner

    tensors = cp()
    ce_fx.conv_einsum(CP, *tensors, stride={"h": 1, "w": 1})
    before = planner.make_plan
    import sys

    module = sys.modules["ce_fx.conv_einsum"]
    planned = []
    module.make_plan = lambda *args, **kwargs: planned.append(1) or before(*args, **kwargs)
    try:
        ce_fx.conv_einsum(CP, *tensors, stride={"h": 1, "w": 1})
        assert not planned
        ce_fx.conv_einsum(CP, *[t.requires_grad_() for t in tensors], stride={"h": 1, "w": 1})
        assert len(planned) == 1  # training is planned apart
    finally:
        module.make_plan = before


def test_contract_path_and_its_info():
    path, info = ce_fx.contract_path(CP, *CP_SHAPES, shapes=True)
    assert len(path) == 4
    assert info.opt_cost < info.naive_cost
    assert info.speedup == pytest.approx(info.naive_cost / info.opt_cost)
    assert info.largest_intermediate >= 2 * 5 * 6 * 6
    assert "Complete contraction:  bshw,rt,rs,rh,rw->bthw|hw" in str(info)


def test_opt_cost_counts_multiply_adds_exactly():
    """x [2,4,6,6] and a kernel [5,4,3,3] with padding 1: 2*5*6*6 outputs of 4*3*3 multiply-adds."""
    _, info = ce_fx.contract_path("bshw,tshw->bthw|hw", (2, 4, 6, 6), (5, 4, 3, 3), shapes=True)
    assert info.opt_cost == 2 * 5 * 6 * 6 * 4 * 3 * 3
    _, info = ce_fx.contract_path("h,h,h->h|h", (9,), (3,), (4,), shapes=True, optimize=[(1, 2), (0, 1)])
    assert info.opt_cost == 3 * 4 + 9 * 6  # K_a*K_b where two kernels merge, then output x composed kernel


def test_contract_expression_plans_for_its_shapes():
    tensors = cp()
    expression = ce_fx.contract_expression(CP, *CP_SHAPES)
    torch.testing.assert_close(expression(*tensors), oracle.conv_einsum(CP, *tensors))
    message = "operand 0 has shape (3, 4, 6, 6), not (2, 4, 6, 6)"
    with pytest.raises(ce_fx.ExpressionError, match=re.escape(message)):
        expression(torch.randn(3, 4, 6, 6), *tensors[1:])


def test_memory_limit_is_kept_or_refused():
    _, free = ce_fx.contract_path(CP, *CP_SHAPES, shapes=True)
    limit = 4 * 2 * 5 * 6 * 6  # the output in bytes: nothing may be larger
    _, info = ce_fx.contract_path(CP, *CP_SHAPES, shapes=True, memory_limit=limit)
    assert info.largest_intermediate <= limit // 4 <= free.largest_intermediate * 10
    with pytest.raises(ce_fx.ExpressionError, match="keeps every intermediate within"):
        ce_fx.contract_path(CP, *CP_SHAPES, shapes=True, memory_limit=4)


@pytest.mark.parametrize("padding", [2, (1, 2)])
def test_a_padded_copy_is_bound_by_the_memory_limit(padding):
    """What both sides have in common is padded within the convolution; for the rest there is a copy."""
    x, w = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(5, 5, 4, dtype=torch.float64)
    limit = 8 * 2 * 5 * 13  # the result, of padding 2
    options = {"padding": padding, "optimize": "written"}
    expected = oracle.conv_einsum("bsl,tsl->btl|l", x, w, padding=padding)
    if padding == 2:
        found = ce_fx.conv_einsum("bsl,tsl->btl|l", x, w, memory_limit=limit, **options)
    else:
        copied = limit  # 12 positions and one more; the result has 12
        with pytest.raises(ce_fx.ExpressionError, match=f"would take {copied} bytes, more than the memory limit of"):
            ce_fx.conv_einsum("bsl,tsl->btl|l", x, w, memory_limit=copied - 1, **options)
        found = ce_fx.conv_einsum("bsl,tsl->btl|l", x, w, memory_limit=copied, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("ij,jk->ik", torch.ones(2, 3), 3), {}, "operand 1 is no tensor but int"),
        (("ij,jk->ik", torch.ones(2, 3), torch.ones(4, 3)), {}, "letter 'j' has size 4 in operand 1 ('jk') but 3"),
        (("ij->i", torch.ones(2, 3, dtype=torch.int64)), {}, "operand 0 of 'ij->i' is torch.int64"),
        (("i,i", torch.ones(2), torch.ones(2).double()), {}, "operand 1 of 'i,i' is torch.float64 on cpu"),
        (("i,i",), {}, "was given no operands"),
        (("i,i,i->i", *[torch.ones(2)] * 3), {"optimize": "best"}, "optimize must be one of"),
        (("i,i,i->i", *[torch.ones(2)] * 3), {"optimize": [(0, 5), (0, 1)]}, "path entry 0 is (0, 5)"),
        (("i,i,i->i", *[torch.ones(2)] * 3), {"objective": "speed"}, "objective must be one of"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ce_fx.ExpressionError, match=re.escape(message)):
        ce_fx.conv_einsum(*arguments, **options)


def test_unknown_option_of_contract_path():
    with pytest.raises(ce_fx.ExpressionError, match="unknown option 'strid'"):
        ce_fx.contract_path("i,i", (2,), (2,), shapes=True, strid=2)


def test_an_image_that_is_shorter_than_the_kernel_is_the_kernel():
    x, w = torch.randn(1, 1, 3), torch.randn(1, 1, 5)
    got = ce_fx.conv_einsum("bsl,tsl->btl|l", x, w, padding=2)
    torch.testing.assert_close(got, F.conv1d(w, x, padding=2))
    assert got.shape[-1] == 7
