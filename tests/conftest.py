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


_LONGEST = ("test_packaging.py", "test_compiled.py", "test_cuda_build.py", "test_gpu_script.py")


def pytest_collection_modifyitems(items):
    # What takes minutes begins first: at the end the other workers would have nothing left to do.
    items.sort(key=lambda item: item.path.name not in _LONGEST)
    if torch.cuda.is_available():
        return
    absent = pytest.mark.skip(reason="PyTorch sees no NVIDIA GPU here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(absent)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "cuda"])
def device(request):
    """Each device here that a test shall hold on: the CPU, and a GPU if there is one."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
