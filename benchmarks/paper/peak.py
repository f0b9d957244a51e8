"""The most bytes that are allocated at a time within one step.

On CPU the count is torch's own: its profiler is told of every block that the allocator hands out or takes back, with
its address and its size: a tensor as written, one of a rewritten graph, of generated code, one that autograd saved, or
scratch that an op takes there. Views take no block. Each of these bytes is so counted once, from the op that makes it
to the last reference. What MKL and oneDNN take from the system themselves is not seen. A dispatch mode would see
tensors only, and a ce_fx view runs as written under one. What was there before the step is not in the count; `standing`
gives it. On CUDA it is the allocator's counter.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import allocated


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that a step has at a time beyond what there was before it.

    Args:
        step: what to run. It must have run before, so that nothing is made that stays. Its result is dropped at once.
        device: where its tensors are.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        return allocated(step)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as run:
        step()
    return highest((event.ptr, event.alloc_size) for event in _allocations(run))


def highest(events: Iterable[tuple[int, int]]) -> int:
    """The largest sum of live blocks, from (address, bytes) in order of time; bytes are negative where one is freed.

    A block that is freed without having been handed out in the same step was there before, and counts for nothing.
    """
    blocks: dict[int, int] = {}
    live = most = 0
    for address, size in events:
        live -= blocks.pop(address, 0)
        if size > 0:
            blocks[address] = size
            live += size
            most = max(most, live)
    return most


def _allocations(run: Any) -> list[Any]:
    """The CPU allocator's events, in order of time."""
    found: list[tuple[int, Any]] = []

    def walk(events: Iterable[Any]) -> None:
        for event in events:
            kind, fields = event.typed
            if kind == torch._C._profiler._EventType.Allocation and fields.device.type == "cpu":
                found.append((event.start_time_ns, fields))
            walk(event.children)

    walk(run.profiler.kineto_results.experimental_event_tree())
    return [fields for _, fields in sorted(found, key=lambda pair: pair[0])]


def standing(model: nn.Module, tensors: Iterable[Tensor]) -> int:
    """Bytes of a model's parameters and buffers, and of some tensors; each storage once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*_state(model), *tensors)}
    return sum(storages.values())


def _state(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that ops make, and the most that are alive at a time.

    On the device "meta" they are counted without being made. What an op takes within itself is not seen. It is for ways
    by hand: a view of ce_fx runs as written under a mode.

    Attributes:
        most: the most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an op, and count what it made."""
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = [storage for storage in _storages(result) if storage._cdata not in given]
        self._alive = {one: size for one, size in self._alive.items() if not one.expired()}
        self._alive |= {StorageWeakRef(storage): storage.nbytes() for storage in made}
        self.most = max(self.most, sum(self._alive.values()))
        return result


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


Points: TypeAlias = Sequence[tuple[int, int]]
"""Batch sizes and the bytes of a step of each; the last is the one that was timed."""


def largest_batch(points: Points, budget: int) -> int | None:
    """The largest batch whose step fits a budget, from the bytes of steps at two batch sizes; None: they do not grow.

    Bytes are taken for a straight line through both, that is, for the same order at any batch. The peak is the largest
    of several straight lines, so it may grow faster later: the true batch is not larger. See `is_grown`.
    """
    slope = _slope(points)
    if slope <= 0:
        return None
    batch, bytes_ = points[-1]
    return max(0, int(batch + (budget - bytes_) / slope))


def is_grown(points: Points) -> bool:
    """Whether most bytes at the last batch grow with it, so that a line through both batches can be trusted."""
    batch, bytes_ = points[-1]
    return _slope(points) * batch >= bytes_ / 2


def _slope(points: Points) -> float:
    """Bytes of one more in the batch; 0 where they were counted at one batch size only."""
    if len(points) < 2:
        return 0.0
    (batch, bytes_), (other, others) = points[-1], points[-2]
    return (others - bytes_) / (other - batch)
