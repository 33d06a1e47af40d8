"""Triton kernels: on the GPU, or where there is none in the interpreter (see tests/conftest.py)."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # the kernels cannot be imported


@pytest.fixture
def device():
    """Where the kernels of this process run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poisoned(monkeypatch):
    """Let every tensor without values hold NaN, so that an element nobody writes shows."""

    def poison(function):
        def run(*args, **kwargs):
            made = function(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(-(2**30))

        return run

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poison(getattr(torch.Tensor, name)))
