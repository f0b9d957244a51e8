"""Measuring one network in one mode: all ways in turn in one process, and the bytes of each.

In training bytes are counted at two batch sizes, for the largest batch; inference has no table of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import ce_fx
from benchmarks.harness import compare, seconds_of
from benchmarks.paper.again import Orders
from benchmarks.paper.cells import FAR, Cell, Settings
from benchmarks.paper.peak import Live, peak_bytes, standing
from benchmarks.paper.ways import (
    BY_INDUCTOR,
    DENSE,
    LEFT,
    LEFT_CHECKPOINTED,
    OURS,
    REBUILT,
    Way,
    gradients,
    results,
    way,
)
from benchmarks.paper.workloads import Batch, Size, Workload


def measure(workload: Workload, form: str, rate: float, mode: str, settings: Settings) -> Cell:
    """One cell.

    Args:
        workload: the network and its batches.
        form: of the factorised layers.
        rate: of their weights.
        mode: "train" or "inference".
        settings: how.
    """
    torch.manual_seed(0)
    size = workload.sizes[settings.size]
    model, layers = workload.factorise(size.make(), form, rate)
    bench = Bench(model.to(settings.device).train(mode == "train"), size, mode, settings)
    with gradients(mode):
        rounds, errors = bench.measured(settings.chosen(mode), settings.batch_of(workload))
    peaks = bench.points(settings.batch_of(workload))
    where = settings.where(workload)
    return Cell(workload.name, form, rate, mode, where, settings.by(), layers, rounds, peaks, errors, bench.notes)


@dataclass
class Bench:
    """One network that is being measured; its methods run within `gradients`.

    Attributes:
        model: the factorised network, in the mode.
        size: of its batches.
        mode: "train" or "inference".
        settings: how.
        peaks: bytes of a step with weights and inputs, by way and batch size.
        notes: what there is to say of a way.
        orders: what each way of ce_fx chose at the batch size that is timed.
        decided: what its report said then.
    """

    model: nn.Module
    size: Size
    mode: str
    settings: Settings
    peaks: dict[str, dict[int, int]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    orders: dict[str, Orders] = field(default_factory=dict)
    decided: dict[str, list[str]] = field(default_factory=dict)

    def measured(self, names: Sequence[str], batch: int) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Seconds of some ways round by round, and their errors; the bytes are in `peaks`."""
        in_part = self.in_part([name for name in (LEFT, LEFT_CHECKPOINTED) if name in names], batch)
        names = [name for name in names if name not in in_part]
        inputs = self.inputs(batch)
        ways = self.ready(names, batch, inputs)
        steps = {name: one.step for name, one in ways.items()}
        rounds = compare(steps, self.settings.rounds, warm=True, far=FAR, near=REBUILT).rounds if steps else {}
        self.decided |= {name: decisions(one.run) for name, one in ways.items() if name in OURS}
        self.notes |= {name: counted(found) for name, found in self.decided.items()}
        for other in self.counts(batch)[1:]:
            inputs = self.inputs(other)
            ways = self.ready(names, other, inputs)
        errors = errors_of(ways, inputs, self.mode)
        seconds = in_part | {name: list(each) for name, each in rounds.items()}
        return {name: each for name, each in seconds.items() if each}, errors

    def points(self, batch: int) -> dict[str, tuple[tuple[int, int], ...]]:
        """Batch sizes and bytes by way, in order of size, but the batch that is timed is the last."""
        return {
            name: tuple(sorted(found.items(), key=lambda point: (point[0] == batch, point)))
            for name, found in self.peaks.items()
        }

    def counts(self, batch: int) -> tuple[int, ...]:
        """Batch sizes at which bytes are counted: the one that is timed, and in training another."""
        return (batch, batch // 2 if batch >= 4 else 2 * batch) if self.mode == "train" else (batch,)

    def inputs(self, count: int) -> list[Batch]:
        """Batches of a number of examples, on the device."""
        return [tuple(tensor.to(self.settings.device) for tensor in each) for each in self.size.inputs(count)]

    def count(self, name: str, one: Way, count: int, batches: Sequence[Batch]) -> None:
        """Count the bytes of a way."""
        bytes_ = peak_bytes(one.step, self.settings.device)
        bytes_ += standing(one.model, (tensor for each in batches for tensor in each))
        self.peaks.setdefault(name, {})[count] = bytes_

    def ready(self, names: Sequence[str], count: int, batches: Sequence[Batch]) -> dict[str, Way]:
        """Ways that have run, with their bytes counted; those of ce_fx in the orders that they took before, if any."""
        torch._dynamo.reset()  # the classes' code is shared: Dynamo gives up after eight views of it
        ways = {}
        for name in names:
            again = name in self.orders
            held = self.orders[name].again() if again else nullcontext()
            if name in OURS and not again:
                self.orders[name] = Orders()
                held = self.orders[name].kept()
            with held:
                ways[name] = one = way(name, self.model, batches, self.mode, self.settings.tune)
                # Sizes that vary are captured at the second batch; nothing that stays is made after that.
                for _ in range(2 if name in OURS or name in BY_INDUCTOR else 1):
                    one.step()
            if again and decisions(one.run) != self.decided[name]:
                self.notes[name] += f"; another order at a batch of {count}"
                continue
            self.count(name, one, count, batches)
        return ways

    def in_part(self, names: Sequence[str], batch: int) -> dict[str, list[float]]:
        """Seconds of a batch by those ways that take too long or too much, from two examples; [] if not run at all.

        From left to right a run of the ResNet-34 as RCP with 5 % of the dense weights takes half a minute, and with all
        of them ten; as RTK with 5 % one example takes 7 GiB, and 55 in training.
        """
        found = {}
        for name in names:
            needed = self.bytes_by_hand(name, batch)
            large = needed > self.settings.memory
            reason = f"a batch takes {needed / 2**30:.3g} GiB" if large else f"more than {self.settings.patience:g} s"
            if large and self.bytes_by_hand(name, 2) > self.settings.memory:
                found[name], self.notes[name] = [], f"not run: {reason}"
            else:
                seconds = self.of_two(name, batch / 2)
                if not large and seconds <= self.settings.patience:
                    continue
                found[name], self.notes[name] = [seconds], f"{batch / 2:g} times 2 examples: {reason}"
            self.notes[name] += "; bytes counted without a run"
            self.peaks[name] = {count: self.bytes_by_hand(name, count) for count in self.counts(batch)}
        return found

    def of_two(self, name: str, times: float) -> float:
        """Seconds of a number of runs of two examples, from one that is not the first unless that takes too long."""
        step = way(name, self.model, self.inputs(2), self.mode).step
        for _ in range(2):
            seconds = seconds_of(step)
            if not seconds <= self.settings.patience < seconds * times:
                break
        return seconds * times

    def bytes_by_hand(self, name: str, count: int) -> int:
        """The most bytes of a step of a way by hand, with weights and inputs, without making any tensor of it."""
        ghost = copy.deepcopy(self.model).to("meta")
        batches = [tuple(tensor.to("meta") for tensor in batch) for batch in self.size.inputs(count)]
        one = way(name, ghost, batches, self.mode)
        with Live() as live:
            one.step()
        return live.most + standing(ghost, (tensor for batch in batches for tensor in batch))


def errors_of(ways: dict[str, Way], batches: Sequence[Batch], mode: str) -> dict[str, float]:
    """The largest difference of outputs and gradients to those of `rebuilt`, by norm; the dense weights are others.

    In training a rounding may put an activation on the other side of a ReLU: on the ResNet-34 at batch 2 left to right
    is then 1e-3 to 5e-3 from `rebuilt`, and so is any order that does not build the same kernels; each layer by itself
    is right to 1e-6, and in float64 so is the whole.
    """
    if REBUILT not in ways:
        return {}
    true = list(results(ways[REBUILT], batches, mode))
    errors = {}
    for name, one in ways.items():
        pairs = [(a, b) for a, b in zip(results(one, batches, mode), true, strict=True) if a.shape == b.shape]
        dense = name == DENSE or BY_INDUCTOR.get(name) == DENSE
        errors[name] = max(float((a - b).norm() / b.norm()) for a, b in pairs if not (dense and a.dim() == 1))
    return errors


def decisions(fast: Callable[..., Any]) -> list[str]:
    """What a view's report says of each factorised layer."""
    return [layer.decision for layer in ce_fx.report(fast).layers]


def counted(found: Sequence[str]) -> str:
    """Decisions, counted: "32 rewritten"."""
    return ", ".join(f"{found.count(name)} {name}" for name in ("rewritten", "kept", "refused") if name in found)
