"""Half precision: read as it is, summed and given back in float32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["for_sums"]

_HALF = (torch.bfloat16, torch.float16)


def for_sums(x: Tensor) -> Tensor:
    """The tensor in the precision in which it is summed: float32 for bfloat16 and float16."""
    return x.float() if x.dtype in _HALF else x
