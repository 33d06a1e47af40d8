"""Half precision: tensors in it are summed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HALVES", "dtype_of_sums", "for_sums", "is_half"]

HALVES = (torch.bfloat16, torch.float16)


def is_half(x: Tensor) -> bool:
    """Whether it is of half precision, which is summed in float32."""
    return x.dtype in HALVES


def dtype_of_sums(x: Tensor) -> torch.dtype:
    """That of `for_sums(x)`."""
    return torch.float32 if is_half(x) else x.dtype


def for_sums(x: Tensor) -> Tensor:
    """The tensor in the precision in which it is summed: float32 for bfloat16 and float16."""
    return x.float() if is_half(x) else x
