"""Checks of values while nobody can look at any: a graph is being captured or traced."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.backends.operation import nobody_sees_values

__all__ = ["assert_later", "is_capturing"]


def is_capturing(tensor: Tensor) -> bool:
    """Whether what is done to the tensor now is recorded, in a CUDA graph or by a compiler."""
    on_gpu = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return on_gpu or nobody_sees_values()


def assert_later(condition: Tensor, message: str) -> None:
    """Have each run of the graph stop with a RuntimeError where a value is not true.

    On a GPU, like PyTorch's own device-side assertions, it ends the process's use of the GPU; what
    would have read or written outside of a tensor does not run.
    """
    torch._assert_async(condition.all(), message)
