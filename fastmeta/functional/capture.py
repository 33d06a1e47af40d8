"""Checks of values while a CUDA graph is being captured, when the host cannot look at any."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["assert_later", "is_capturing"]


def is_capturing(tensor: Tensor) -> bool:
    """Whether what is done to the tensor now is recorded in a CUDA graph instead of run."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def assert_later(condition: Tensor, message: str) -> None:
    """Have the GPU stop with an error, at each replay of the graph, where a value is not true.

    Like PyTorch's own device-side assertions it ends the process's use of the GPU; what would have
    read or written outside of a tensor does not run.
    """
    torch._assert_async(condition.all(), message)
