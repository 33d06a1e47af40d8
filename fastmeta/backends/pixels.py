"""Images out of a store of bytes, scaled, in the native CPU code: nothing checked here."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.backends import cpu

__all__ = ["can_run", "take"]

_KERNELS = {torch.float32: "take_pixels_float32", torch.float64: "take_pixels_float64"}


def can_run(images: Tensor, dtype: torch.dtype) -> bool:
    """Whether the native code takes these bytes and makes this dtype."""
    fits = images.is_cpu and images.dtype is torch.uint8 and images.is_contiguous()
    return fits and dtype in _KERNELS and cpu.native is not None


def take(images: Tensor, rows: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """``images[rows] * factor + shift``: uint8 [n, C, H, W], int64 [m] in [0, n), and [C] twice.

    The dtype of `factor` and `shift` is that of the result.
    """
    n, channels, height, width = images.shape
    out = factor.new_empty(len(rows), channels, height, width)
    assert cpu.native is not None
    getattr(cpu.native, _KERNELS[factor.dtype])(
        images.data_ptr(), rows.data_ptr(), len(rows), channels, height * width,
        factor.data_ptr(), shift.data_ptr(), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out
