"""The workloads: networks with synthetic batches of real geometry, in three sizes.

"cpu" is for two cores, "full" for a GPU, and "quick" only shows that everything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import ce_fx
from benchmarks.doors_models import Conformer
from benchmarks.paper.nets import ResNet, TwoStream

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Size:
    """A workload in one size.

    Attributes:
        make: the dense network.
        batch: examples of a batch.
        inputs: batches of a number of examples; a step goes through all of them.
        geometry: of the inputs, for the table.
    """

    make: Callable[[], nn.Module]
    batch: int
    inputs: Callable[[int], list[Batch]]
    geometry: str


@dataclass(frozen=True)
class Workload:
    """One of the paper's applications.

    Attributes:
        name: of the rows.
        forms: the forms of its layers.
        rates: of the layers' weights, over those of the dense ones.
        factorise: (dense network, form, rate) -> the network with factorised layers, and how many those are.
        sizes: by name.
    """

    name: str
    forms: tuple[str, ...]
    rates: tuple[float, ...]
    factorise: Callable[[nn.Module, str, float], tuple[nn.Module, int]]
    sizes: dict[str, Size]


RATES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def of_stages(model: nn.Module, form: str, rate: float) -> tuple[nn.Module, int]:
    """Every convolution of the residual blocks factorised, with three channel factors; stem and head stay dense.

    A convolution that has no rank of the rate, such as a small 1x1 at 1 %, stays dense, too.
    """
    made = ce_fx.nn.tensorize(
        model, form, rate, include=lambda name, module: "stages." in name, from_weights=False, num_factors=3
    )
    return made, sum(isinstance(module, ce_fx.nn.ConvEinsum) for module in made.modules())


def over_time(model: nn.Module, form: str, rate: float) -> tuple[nn.Module, int]:
    """The convolution over time of a Conformer block as CP: `bsh,rt,rs,rh->bth|h`, as the form and the paper have it.

    From left to right that starts with the output channels, which is slow for a reason that is easily mended. As
    "cp, inputs first" the factors are in the order of Lebedev et al. (arXiv 1412.6553), `bsh,rs,rh,rt->bth|h`: from
    left to right there is hardly a better one.
    """
    dense, of_form = model.over_time, ce_fx.nn.ConvEinsum.of_form
    options = {"padding": dense.padding, "bias": False}
    made = of_form("cp", dense.in_channels, dense.out_channels, dense.kernel_size, rate=rate, **options)
    model.over_time = made
    if form == "cp, inputs first":
        outs, ins, taps = made.factors
        shapes = (ins.shape, taps.shape, outs.shape)
        model.over_time = ce_fx.nn.ConvEinsum("bsh,rs,rh,rt->bth|h", *shapes, **options)
    elif form != "cp":
        raise ValueError(f"the Conformer block is measured as cp or as cp, inputs first, not as {form}")
    return model, 1


def images(size: int, channels: Sequence[int], batch: int) -> list[Batch]:
    """One batch of square images, one for each number of channels."""
    return [tuple(torch.randn(batch, count, size, size) for count in channels)]


def speech(lengths: Sequence[int], width: int, batch: int) -> list[Batch]:
    """Batches whose longest utterances have the given lengths; the others are padded, by a half at most."""
    batches = []
    for longest in lengths:
        each = torch.randint(longest // 2, longest + 1, (batch,))
        each[0] = longest
        batches.append((torch.randn(batch, longest, width), torch.arange(longest) < each[:, None]))
    return batches


def workloads() -> list[Workload]:
    """All three."""
    resnet34 = Workload(
        "ResNet-34",
        ("rcp", "rtk", "rtt", "rtr"),
        RATES,
        of_stages,
        {
            "cpu": Size(ResNet, 16, partial(images, 32, (3,)), "x 3 x 32 x 32"),
            "full": Size(ResNet, 128, partial(images, 32, (3,)), "x 3 x 32 x 32"),
            "quick": Size(partial(ResNet, (1,), width=8), 2, partial(images, 8, (3,)), "x 3 x 8 x 8"),
        },
    )
    conformer = Workload(
        "Conformer",
        ("cp", "cp, inputs first"),
        RATES,
        over_time,
        {
            "cpu": Size(Conformer, 16, partial(speech, (120, 97, 143), 144), "x (120, 97, 143) x 144"),
            "full": Size(
                partial(Conformer, 512, 8), 16, partial(speech, (812, 640, 1021), 512), "x (812, 640, 1021) x 512"
            ),
            "quick": Size(partial(Conformer, 16, 2, 5), 2, partial(speech, (12, 9), 16), "x (12, 9) x 16"),
        },
    )
    streams = Workload(
        "two-stream ResNet-101",
        ("rcp",),
        (0.05, 0.1, 0.5),
        of_stages,
        {
            "cpu": Size(TwoStream, 2, partial(images, 64, (3, 20)), "x (3, 20) x 64 x 64"),
            "full": Size(TwoStream, 16, partial(images, 224, (3, 20)), "x (3, 20) x 224 x 224"),
            "quick": Size(partial(TwoStream, (1,), 8, 2), 2, partial(images, 32, (3, 4)), "x (3, 4) x 32 x 32"),
        },
    )
    return [resnet34, conformer, streams]
