"""The backend "triton": what it says where it cannot run, and what it demands."""

import inspect
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

import fastmeta as fm
from fastmeta.backends import (
    triton,
    triton_losses,
    triton_norm,
    triton_products,
    triton_prototypes,
)


@pytest.fixture
def interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_without_triton_it_says_so(monkeypatch):
    triton._without_triton.cache_clear()
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    try:
        assert fm.available_backends()["triton"] == "triton is not installed"
    finally:
        triton._without_triton.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "no NVIDIA GPU; TRITON_INTERPRET=1" in fm.available_backends()["triton"]


def test_only_a_demand_takes_it_to_the_cpu(interpreter):
    x = torch.ones(2)
    assert not triton.takes(x)
    with fm.use_backend("triton"):
        assert triton.takes(x, None)
    for other in ("reference", "cpu"):
        with fm.use_backend(other):
            assert not triton.takes(x)


def test_what_it_cannot_run_is_an_error_where_it_is_demanded(interpreter):
    with fm.use_backend("triton"):
        with pytest.raises(ValueError, match="cannot run this: the tensors are torch.bfloat16"):
            triton.takes(torch.ones(2, dtype=torch.bfloat16))
        with pytest.raises(ValueError, match="cannot run this: a tensor is empty"):
            triton.takes(torch.ones(0))
        with pytest.raises(ValueError, match="cannot run this: the tensors are on meta"):
            triton.takes(torch.ones(2, device="meta"))


def test_fastmeta_does_not_load_triton():
    program = (
        "import sys, torch, fastmeta as fm; fm.MAML(torch.nn.Linear(1, 1)); "
        "fm.available_backends(); assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_kernels_start_on_the_device_of_their_tensors(monkeypatch):
    """Of which the first may be inside of a tuple: Triton takes whatever device is current."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: current.append(x) or nullcontext())
    x = torch.ones(1)
    run = triton.on_their_device(lambda first, second: second)
    assert [run(x, 1), run((x, None), second=2)] == [1, 2]
    assert all(tensor is x for tensor in current) and len(current) == 2


@pytest.mark.parametrize(
    "module", [triton_losses, triton_norm, triton_products, triton_prototypes]
)
def test_whatever_starts_kernels_does_so(module):
    start = triton.on_their_device(lambda x: x).__code__
    starters = 0
    for name, function in vars(module).items():
        layers = [*_layers(function)] if inspect.isfunction(function) else []
        if layers and any(n.startswith("fastmeta.kernels") for n in layers[-1].__code__.co_names):
            starters += 1
            assert any(layer.__code__ is start for layer in layers), name
    assert starters >= 3


def _layers(function):
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)
