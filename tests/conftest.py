"What holds for all tests."

import os
import sys
from pathlib import Path

# Idle threads sleep: many times faster on shared cores; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from sample_store import make_sample_store

settings.register_profile("shared cores", deadline=None)
settings.load_profile("shared cores")


@pytest.fixture(scope="session", autouse=True)
def threads():
    "Test processes that run side by side share the cores."
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if processes > 1:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@pytest.fixture(scope="session", autouse=True)
def sample_store():
    "The store of the bundled sample is there."
    make_sample_store()


@pytest.fixture(autouse=True)
def smallest_numbers_stay():
    "No test turns the smallest numbers to zero, as a library built with -ffast-math does."
    yield
    tiny = 5e-324
    assert tiny * 1.0 != 0.0, "numbers below the normal range have become zero"
