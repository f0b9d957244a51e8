"""The shared models: of a scale at which a wrong convolution shows in the output, and of the size counted by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models import factorized_conv, factorized_resnet18


@pytest.mark.parametrize("factorization", ["tt", "cp", "tucker"])
def test_outputs_have_about_the_scale_of_the_inputs(factorization):
    layer = factorized_conv(32, 48, factorization=factorization, bias=True)
    x = torch.randn(2, 32, 9, 9)
    with torch.no_grad():
        spread = (layer(x) - layer.bias.reshape(48, 1, 1)).std()
    assert 0.3 < float(spread) < 3


@pytest.mark.parametrize("factorization", ["tt", "cp", "tucker"])
def test_factorized_and_reconstructed_are_one_convolution(factorization):
    layer = factorized_conv(8, 12, 2, factorization, bias=True).double()
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    kernel = layer.weight.to_tensor()  # a TT kernel has its output channels last
    kernel = kernel.movedim(-1, 0) if factorization == "tt" else kernel
    dense = torch.nn.functional.conv2d(x, kernel, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), dense)
    rebuilt = factorized_conv(8, 12, 2, factorization, implementation="reconstructed", bias=True).double()
    rebuilt.load_state_dict(layer.state_dict())
    torch.testing.assert_close(rebuilt(x), dense)


def test_the_3x3_convolutions_of_the_tt_resnet_cost_3_55_gflop():
    model = factorized_resnet18("tt", 0.25).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False, depth=None) as counter:
        model(torch.randn(4, 3, 224, 224, device="meta"))
    counts = counter.get_flop_counts()
    blocks = [
        sum(ops.values()) for name, ops in counts.items() if "layer" in name and name.endswith(("conv1", "conv2"))
    ]
    assert len(blocks) == 16
    assert round(sum(blocks) / 1e9, 2) == 3.55
