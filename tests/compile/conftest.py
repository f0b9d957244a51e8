"""Inductor compiles anew in every test: where it finds a graph in its cache no pass is run."""

import pytest
import torch
from torch._inductor.utils import fresh_cache


@pytest.fixture(autouse=True)
def nothing_cached():
    torch._dynamo.reset()
    with fresh_cache():
        yield
