"""What every test shares: fixed seeds, and property tests that give the same cases each time."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for `oracle`

# Without a GPU Triton's interpreter runs its kernels, in all of this process: Triton reads the
# variable when it is imported and when a kernel's file is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile(
    "fastmeta",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fastmeta")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
