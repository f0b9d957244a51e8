"""Settings of the whole suite: one thread, hypothesis profiles, gpu tests skipped without CUDA."""

import atexit
import os
import shutil
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# Decisions by prediction, which are the same on every machine; the tests of tuning ask for it. Nothing is read from or
# left in the cache of whoever runs the tests.
os.environ["CE_FX_TUNE"] = "0"
os.environ["CE_FX_CACHE_DIR"] = tempfile.mkdtemp(prefix="ce_fx_tests_")
atexit.register(shutil.rmtree, os.environ["CE_FX_CACHE_DIR"], True)

# torch is slow to draw, and the fixture below is meant for whole tests; a strategy that filters too much still fails.
_SLOW = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.function_scoped_fixture,
]
_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": _SLOW}
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
    """Every test starts from one seed and an empty Dynamo, and leaves no autocast open: its cache would go stale."""
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
    depth = torch.autocast_increment_nesting() - 1
    while torch.autocast_decrement_nesting():  # what one test leaves is not the next one's
        pass
    torch.clear_autocast_cache()
    assert depth == 0
