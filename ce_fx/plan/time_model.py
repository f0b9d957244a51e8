"""Predicted seconds of a tensor op: a roofline by family, with constants of one device.

    t = t0 + each * matrices + macs / (rate * K/(K + k0) * N/(N + n0) * M/(M + m0)) + bytes / bandwidth + beyond / far

K is the reduction length, N the output channels of one group (of a matmul the innermost dim of its result), M the
pixels or rows of one batch item: each of the three fractions says how much of the family's rate a thin op reaches.
`matrices` are the batch items and groups that the product falls into; `beyond` are the bytes past `NEAR`, whose memory
is asked from the system anew and is in no cache. An op without multiply-adds reaches N/(N + n0) of the bandwidth, where
N are the elements that it finds in a row: a permute whose last dim is another one has 1. The launch of a convolution of
one small image is a fraction of that of others, for torch then multiplies matrices instead of calling a library with a
set-up of its own (`use_mkldnn` in ATen's Convolution.cpp).

One rate for all families mispredicts by a factor of 2 to 4; by family the typical error is a factor of 1.3 to 1.4 (see
`ce_fx.tune.calibrate`, and benchmarks/calibrate_defaults.py for the constants that come with the package). Forward and
forward with backward have constants of their own: their ratio runs from 4 to 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from ce_fx.plan.ops import FAMILIES, Op

NEAR = 32 << 20
"""Bytes up to which memory is reused and cached: what an allocator keeps, and about what a server's last cache holds.
glibc maps larger blocks anew each time, at most from 32 MiB on (M_MMAP_THRESHOLD_MAX)."""

SMALL = 20480
"""Elements of one image up to which a lone convolution takes the short launch, as in ATen's `use_mkldnn`."""


@dataclass(frozen=True)
class Roofline:
    """The constants of one family on one device, in one direction.

    Attributes:
        t0: seconds that the op takes however small it is.
        rate: multiply-adds a second of a large op.
        k0, n0, m0: reduction length, channels and rows at which half of the rate is reached; 0 for no dependence.
            Without multiply-adds, n0 is the run of elements at which half of the bandwidth is reached.
        bandwidth: bytes a second.
        alone: the fraction of `t0` that a convolution of one small image takes.
        each: seconds for each batch item and group.
        far: bytes a second, in addition, of what is past `NEAR`; 0 for no addition.
    """

    t0: float
    rate: float
    k0: float
    n0: float
    m0: float
    bandwidth: float
    alone: float = 1.0
    each: float = 0.0
    far: float = 0.0

    def seconds(self, op: Op, itemsize: int = 4, macs: float = 1) -> float:
        """Seconds of an op.

        Args:
            op: what runs.
            itemsize: bytes of an element.
            macs: multiply-adds of float32 that one multiply-add takes.
        """
        data = op.elements * itemsize
        time = self.t0 + data / self.bandwidth
        if self.far and data > NEAR:
            time += (data - NEAR) / self.far
        if op.macs:
            sizes = ((self.k0, op.reduce), (self.n0, op.columns), (self.m0, op.rows))
            thin = prod(1 + half / max(1, size) for half, size in sizes)
            time += op.macs * macs * thin / self.rate
            matrices = op.macs // max(1, op.reduce * op.columns * op.rows)
            time += self.each * matrices
            if self.alone != 1 and matrices <= 1 and _image(op) <= SMALL:
                time -= self.t0 * (1 - self.alone)
        else:
            time += data / self.bandwidth * self.n0 / max(1, op.columns)
        return time


def _image(op: Op) -> int:
    """Elements of the image that an ungrouped convolution of one reads."""
    return op.elements - op.columns * (op.reduce + op.rows)


@dataclass(frozen=True)
class TimeModel:
    """Seconds of ops on one device, for one kind of number.

    Attributes:
        device: kind of device: "cpu", "cuda", ...
        forward_rates: the roofline of each family in a forward pass.
        both_rates: the same for a forward and the backward of both operands.
        calibrated: the constants were measured on the machine that runs; False for the defaults.
        itemsize: bytes of an element.
        complex_numbers: a multiply-add is four real ones.
    """

    device: str
    forward_rates: Mapping[str, Roofline]
    both_rates: Mapping[str, Roofline]
    calibrated: bool = False
    itemsize: int = 4
    complex_numbers: bool = False

    @classmethod
    def default(cls, device: object = "cpu", *, itemsize: int = 4, complex_numbers: bool = False) -> TimeModel:
        """The constants that come with the package; they rank orders on machines like the one they were fitted on.

        Args:
            device: "cpu", "cuda", "cuda:0", or anything that prints so. A kind without constants of its own takes
                those of "cuda": fast, with a launch to pay for each op.
            itemsize: bytes of an element.
            complex_numbers: a multiply-add is four real ones.
        """
        kind = str(device).partition(":")[0]
        forward, both = DEFAULTS.get(kind, DEFAULTS["cuda"])
        return cls(kind, forward, both, False, itemsize, complex_numbers)

    def for_numbers(self, itemsize: int, complex_numbers: bool = False) -> TimeModel:
        """The same device with another kind of number."""
        return replace(self, itemsize=itemsize, complex_numbers=complex_numbers)

    @property
    def real_macs(self) -> float:
        """Multiply-adds of float32 that one takes: a complex one is four, one of float64 two, by the lanes of SIMD.

        Rates are of float32, whatever was measured. Halves are taken to run like singles: whether a device has
        units for them is for a calibration to say.
        """
        width = self.itemsize / 2 if self.complex_numbers else self.itemsize
        return (4 if self.complex_numbers else 1) * max(1.0, width / 4)

    def forward(self, op: Op) -> float:
        """Predicted seconds of an op."""
        return self.forward_rates[op.family].seconds(op, self.itemsize, self.real_macs)

    def forward_backward(self, op: Op) -> float:
        """Predicted seconds of an op and its backward, both operands getting a gradient."""
        return self.both_rates[op.family].seconds(op, self.itemsize, self.real_macs)

    def seconds(self, ops: Iterable[Op], grads: int = 0, runs: int = 1) -> float:
        """Predicted seconds of a step's ops; `grads` (0, 1 or 2) operands get a gradient, `runs` are forward.

        One gradient is taken as half of what the backward adds.
        """
        total = 0.0
        for op in ops:
            forward = self.forward(op)
            total += runs * forward + (max(0.0, self.forward_backward(op) - forward) * grads / 2 if grads else 0.0)
        return total

    @property
    def fastest(self) -> float:
        """Multiply-adds a second that no op exceeds: the bound that a search prunes by."""
        return max(r.rate for r in self.forward_rates.values()) / self.real_macs

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "device": self.device,
            "forward": {family: asdict(rates) for family, rates in self.forward_rates.items()},
            "both": {family: asdict(rates) for family, rates in self.both_rates.items()},
            "calibrated": self.calibrated,
            "itemsize": self.itemsize,
            "complex_numbers": self.complex_numbers,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TimeModel:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a family has no constants.
        """
        tables = {}
        for direction in ("forward", "both"):
            missing = set(FAMILIES) - set(data[direction])
            if missing:
                raise ValueError(f"the {direction!r} constants lack {', '.join(sorted(missing))}; calibrate again")
            tables[direction] = {family: Roofline(**data[direction][family]) for family in FAMILIES}
        flags = {name: data[name] for name in ("calibrated", "itemsize", "complex_numbers") if name in data}
        return cls(data["device"], tables["forward"], tables["both"], **flags)


def _table(rows: Mapping[str, tuple[float, ...]]) -> dict[str, Roofline]:
    """Rows are (t0 in us, rate in GMAC/s, k0, n0, m0, bandwidth in GB/s[, alone, each in us, far in GB/s])."""
    units = (1e-6, 1e9, 1, 1, 1, 1e9, 1, 1e-6, 1e9)
    return {
        family: Roofline(*(number * unit for number, unit in zip(row, units, strict=False)))
        for family, row in rows.items()
    }


# Fitted by benchmarks/calibrate_defaults.py to one and two threads of a server core with AVX-512, both at once. A rate
# above the core's peak is what thin ops extrapolate to, not what a large op reaches.
_CPU_FORWARD = _table(
    {
        "mm": (2.2, 83, 3.5, 10, 4.7, 140, 1, 0, 6.8),
        "bmm": (5.1, 81, 4.7, 22, 0.95, 280, 1, 0.023, 10),
        "conv1x1": (19, 120, 4.7, 5.8, 14, 48, 0.23, 0, 1.6),
        "conv": (30, 240, 5.6, 20, 22, 39, 0.28, 0, 6.8),
        "conv_few": (33, 170, 0.59, 18, 3.3, 44, 0.25, 0, 2),
        "depthwise": (41, 72, 0.87, 0.018, 4.6, 32, 1, 0.0054, 6.8),
        "grouped": (27, 310, 5.6, 47, 5.7, 21, 1, 0.48, 5.2),
        "grouped_thin": (22, 46, 1.1, 9.6, 8.9, 110, 1, 0.58, 4.3),
        "mul": (1, 17, 0, 0, 0, 880, 1, 0, 24),
        "sum": (1.6, 8.3, 0, 31, 0, 88, 1, 0, 11),
        "copy": (2.8, 8.3, 0, 4.9, 0, 150, 1, 0, 6.8),
        "add": (0.89, 8.3, 0, 0, 0, 170, 1, 0, 6.8),
    }
)
_CPU_BOTH = _table(
    {
        "mm": (19, 31, 22, 6.8, 6, 25, 1, 0, 3.6),
        "bmm": (31, 25, 3.5, 23, 1.3, 38, 1, 0.12, 1.8),
        "conv1x1": (72, 45, 4.9, 7.6, 18, 8.6, 0.33, 0, 0.74),
        "conv": (130, 79, 16, 17, 9.8, 5.4, 0.27, 0, 3.6),
        "conv_few": (140, 15, 1.5, 4.6, 3, 11, 0.28, 0, 0.5),
        "depthwise": (140, 3.8, 0.31, 0.027, 4, 12, 1, 0.012, 3.6),
        "grouped": (93, 130, 6, 75, 5.1, 3.9, 1, 1.7, 1.1),
        "grouped_thin": (84, 13, 1.3, 9.2, 7.4, 16, 1, 1.5, 2.7),
        "mul": (17, 2.8, 0, 0, 0, 280, 1, 0, 3.7),
        "sum": (13, 6.1, 0, 20, 0, 75, 1, 0, 10),
        "copy": (16, 6.1, 0, 4, 0, 120, 1, 0, 3.6),
        "add": (13, 6.1, 0, 0, 0, 130, 1, 0, 3.6),
    }
)

# What `ce-fx calibrate --device cuda` found for an NVIDIA H200 with torch 2.11 and cuDNN 9.19, convolutions in TF32.
# Most of its ops are launches: the rates are those of small ops in between, and bandwidths those of its cache.
_CUDA_FORWARD = _table(
    {
        "mm": (12, 38000, 64, 30, 65, 10000),
        "bmm": (15, 68000, 69, 48, 39, 13000),
        "conv1x1": (12, 100000, 40, 26, 130, 14000),
        "conv": (24, 59000, 57, 63, 120, 9600),
        "conv_few": (12, 10000, 13, 4.5, 130, 8500),
        "depthwise": (8.5, 4000, 4.2, 0, 120, 7500),
        "grouped": (34, 33000, 61, 12, 100, 8100),
        "grouped_thin": (10, 1700, 1.4, 11, 2100, 9400),
        "mul": (6.6, 19000, 0, 0, 0, 7100),
        "sum": (7.7, 20000, 0, 0, 0, 6700),
        "copy": (9.1, 20000, 0, 0, 0, 9000),
        "add": (5.6, 20000, 0, 0, 0, 12000),
    }
)
_CUDA_BOTH = _table(
    {
        "mm": (100, 21000, 64, 32, 64, 6300),
        "bmm": (140, 23000, 53, 34, 41, 6900),
        "conv1x1": (110, 27000, 46, 27, 130, 7200),
        "conv": (120, 22000, 63, 30, 120, 6400),
        "conv_few": (100, 2000, 16, 5.4, 130, 4800),
        "depthwise": (86, 1400, 4, 0, 130, 5100),
        "grouped": (170, 6000, 59, 17, 140, 5100),
        "grouped_thin": (120, 300, 1.5, 5.4, 1600, 5500),
        "mul": (91, 5800, 0, 0, 0, 4200),
        "sum": (61, 5800, 0, 0, 0, 6600),
        "copy": (67, 5800, 0, 0, 0, 5800),
        "add": (58, 5800, 0, 0, 0, 6400),
    }
)

DEFAULTS: dict[str, tuple[Mapping[str, Roofline], Mapping[str, Roofline]]] = {
    "cpu": (_CPU_FORWARD, _CPU_BOTH),
    "cuda": (_CUDA_FORWARD, _CUDA_BOTH),
}
