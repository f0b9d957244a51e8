"""The paper's workloads as they are evaluated: orders by hand are the layer's, and bytes are exact."""

import pytest
import torch
from torch import nn

import ce_fx
from benchmarks.doors_models import Conformer
from benchmarks.paper.nets import ResNet
from benchmarks.paper.orders import checkpointed, left_to_right, rebuilt
from benchmarks.paper.peak import Live, highest, is_grown, largest_batch, peak_bytes, standing
from benchmarks.paper.ways import DENSE, LEFT_CHECKPOINTED, REBUILT, names, results, way
from benchmarks.paper.workloads import over_time, speech, workloads

# --- orders by hand

SHAPES = {0: (3, 5, 8), 1: (3, 8, 11), 2: (2, 8, 7, 6), 3: (2, 8, 5, 4, 6)}
LAYERS = [(form, dims) for form, each in ce_fx.nn.FORMS.items() for dims in range(each.dims, 4)]
GEOMETRY = [{}, {"padding": 1, "stride": 2}, {"padding": "same", "dilation": 2}]


def layer(form, dims, **options):
    torch.manual_seed(0)
    rank = 2 if form == "interleaved" else 3
    made = ce_fx.nn.ConvEinsum.of_form(form, 8, 12, (3, 2, 3)[:dims], rank=rank, dtype=torch.float64, **options)
    with torch.no_grad():
        made.bias.normal_()
    return made, torch.randn(SHAPES[dims], dtype=torch.float64, requires_grad=True)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", [left_to_right, checkpointed, rebuilt])
@pytest.mark.parametrize(("form", "dims"), LAYERS)
def test_an_order_is_the_layer(form, dims, order):
    for options in GEOMETRY if dims else GEOMETRY[:1]:
        made, x = layer(form, dims, **options)
        with torch.no_grad():
            same(order(made, x), made.to_dense()(x))


@pytest.mark.parametrize("order", [left_to_right, checkpointed, rebuilt])
def test_gradients_are_those_of_the_layer(order):
    made, x = layer("rtt", 2, padding=1)
    inputs = [x, *made.parameters()]
    true, found = (torch.autograd.grad(run(x).square().sum(), inputs) for run in (made, lambda x: order(made, x)))
    for mine, each in zip(found, true, strict=True):
        same(mine, each)


@pytest.mark.parametrize("order", [left_to_right, rebuilt])
def test_groups(order):
    torch.manual_seed(0)
    made = ce_fx.nn.ConvEinsum.of_form("rtt", 16, 24, (3, 3), rank=2, groups=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        same(order(made, x), made.to_dense()(x))


def test_left_to_right_makes_one_op_a_factor():
    from torch.utils.flop_counter import FlopCounterMode

    made = ce_fx.nn.ConvEinsum("bshw,rs,rh,rw,rt->bthw|hw", (4, 8), (4, 3), (4, 3), (4, 12), padding=1, bias=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        left_to_right(made, torch.randn(2, 8, 10, 10))
    pixels = 2 * 10 * 10
    assert counter.get_total_flops() == 2 * pixels * (8 * 4 + 4 * 3 + 4 * 3 + 4 * 12)


# --- bytes


def test_the_highest_sum_of_live_blocks():
    assert highest([]) == 0
    assert highest([(1, 100), (2, 50), (1, -100), (3, 60)]) == 150
    assert highest([(7, -1000), (1, 10)]) == 10  # it was there before
    assert highest([(1, 10), (1, -10), (1, 30), (2, 5)]) == 35  # an address is used again


def test_peak_bytes_of_a_known_step():
    x = torch.randn(1000)  # 4000 bytes, there before

    def step():
        a = x + 1  # 4000
        b = a.view(10, 100)[2:]  # a view
        c = b.sum(0)  # 400
        del a, b
        return torch.cat([c, c, c]).double()  # 1200, 2400

    step()
    assert peak_bytes(step) == 4000 + 400
    assert peak_bytes(lambda: x.view(-1)) == 0
    assert peak_bytes(lambda: x.clone()) == 4000


def test_peak_bytes_hold_what_autograd_saves():
    x, w = torch.randn(50, 20), torch.randn(20, 20, requires_grad=True)

    def step():
        y = torch.relu(x @ w)  # 4000, and 4000 that are kept
        return y.sum(0).detach()  # 80

    step()
    assert peak_bytes(step) == 8000  # once the relu is there, its input is not needed


def test_standing_bytes_count_a_storage_once():
    x = torch.randn(10, 10)
    model = nn.Linear(10, 3)
    assert standing(model, [x, x[2:], x.view(-1)]) == 4 * (100 + 33)
    assert standing(nn.BatchNorm1d(5), []) == 4 * 20 + 8  # two parameters, two statistics, and a counter of int64


def test_bytes_of_tensors_are_counted_without_making_them():
    x = torch.randn(10**6, 10, device="meta")
    w = torch.randn(10, 10**6, device="meta", requires_grad=True)

    def step():
        a = (x @ w).relu()  # both of 4e12
        b = a.view(-1)[1:]  # a view
        y = b.sum()  # 4
        del a, b
        torch.autograd.grad(y, [w])  # in which the relu's result, its gradient and that of its input are there

    with Live() as live:
        step()
    assert live.most == pytest.approx(12e12, rel=1e-4)
    with Live() as live:
        x.view(-1)
        x.mul_(2)
    assert live.most == 0, "nothing is made"


@pytest.mark.parametrize(
    ("bytes_", "budget", "largest"), [((200, 300), 1000, 9), ((200, 300), 99, 0), ((100, 100), 9, None)]
)
def test_the_largest_batch(bytes_, budget, largest):
    assert largest_batch(list(zip((1, 2), bytes_, strict=True)), budget) == largest


def test_one_batch_tells_of_no_other():
    assert largest_batch([(2, 300), (1, 200)], 1000) == 9
    assert largest_batch([(4, 100)], 1000) is None and not is_grown([(4, 100)])


def test_a_batch_that_is_mostly_weights_tells_little():
    assert is_grown([(1, 200), (2, 300)]) and not is_grown([(1, 1000), (2, 1100)])


# --- workloads and ways


@pytest.mark.parametrize("form", ["cp", "cp, inputs first"])
def test_the_conformer_takes_padded_batches(form):
    torch.manual_seed(0)
    model, count = over_time(Conformer(16, 2, 5), form, 0.2)
    ((x, frames),) = speech((12,), 16, 3)
    y = model.eval()(x, frames)
    assert count == 1 and y.shape == x.shape and frames[0].all()
    assert model.over_time.num_weights <= 0.2 * 16 * 16 * 5
    assert model.over_time.string == {"cp": "bsh,rt,rs,rh->bth|h"}.get(form, "bsh,rs,rh,rt->bth|h")
    x[~frames] = 7.0  # what the padding holds is seen nowhere else
    torch.testing.assert_close(model(x, frames)[frames], y[frames], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_ways_agree(mode):
    workload = workloads()[0]
    size = workload.sizes["quick"]
    torch.manual_seed(0)
    model, count = workload.factorise(ResNet((1, 1), width=8), "rtt", 0.5)
    model = model.double().train(mode == "train")
    batches = [tuple(tensor.double() for tensor in batch) for batch in size.inputs(2)]
    assert count == 5  # four 3x3, and the shortcut
    with torch.set_grad_enabled(mode == "train"):
        made = {name: way(name, model, batches, mode, tune=False) for name in names(mode, False)}
        found = {name: list(results(one, batches, mode)) for name, one in made.items()}
    for name, each in found.items():
        same(each[0], found[REBUILT][0])
        if name != DENSE and mode == "train":
            same(each[1], found[REBUILT][1])


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LayerNorm(6)])
def test_a_step_has_gradients_behind_a_softmax_and_a_norm(last):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), last)
    one = way(REBUILT, model, batches := [(torch.randn(5, 4),)], "train")
    assert list(results(one, batches, "train"))[1].norm() > 1e-2


def test_names_of_a_mode():
    assert LEFT_CHECKPOINTED in names("train", False) and LEFT_CHECKPOINTED not in names("inference", True)
    assert "ce_fx inductor" in names("inference", True) and "ce_fx inductor" not in names("train", False)
