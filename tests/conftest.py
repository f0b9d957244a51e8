"""Settings of the whole suite: one thread, hypothesis profiles, gpu tests skipped without CUDA."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=300, derandomize=True, database=None, **_COMMON)
settings.register_profile("fuzz", max_examples=int(os.environ.get("CE_FX_FUZZ_EXAMPLES", "300")), **_COMMON)
settings.load_profile("fuzz" if "CE_FX_FUZZ_EXAMPLES" in os.environ else "ci")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def fresh():
    """Every test starts from one seed and an empty Dynamo."""
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
