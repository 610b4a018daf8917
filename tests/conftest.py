"No test may change how the processor calculates: a library built with -ffast-math turns the smallest numbers to zero for all that follows."
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # idle threads sleep: many times faster on shared cores; read when torch is loaded

import pytest


@pytest.fixture(autouse=True)
def smallest_numbers_stay():
    yield
    tiny = 5e-324
    assert tiny * 1.0 != 0.0, "numbers below the normal range have become zero"
