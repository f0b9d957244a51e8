"""Two processes of one gloo group on this machine, which a deadline ends."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEADLINE = 150.0
"""Seconds after which both processes are ended."""


def on_two(work, folder, *args):
    """Run `work(*args)` in two processes of one group; an exception in one is raised here and ends the other.

    Raises:
        TimeoutError: they had not finished by the deadline.
    """
    mp.get_context("forkserver").set_forkserver_preload(["tests.train.nets"])  # torch is imported once
    store = f"file://{folder}/store"
    running = mp.start_processes(_rank, (work, store, args), nprocs=2, join=False, start_method="forkserver")
    end = time.monotonic() + DEADLINE
    try:
        while not running.join(timeout=max(0.0, end - time.monotonic())):
            if time.monotonic() >= end:
                raise TimeoutError(f"{work.__name__} did not finish in {DEADLINE:g} s")
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()


def _rank(rank, work, store, args):
    torch.set_num_threads(1)
    # Two buckets at least, even for small models; DDP and Dynamo's splitter of its graphs both read it.
    dist._DEFAULT_FIRST_BUCKET_BYTES = 4096
    dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=2, rank=rank)
    try:
        work(*args)
        dist.barrier()
    finally:
        dist.destroy_process_group()
