"""Max-pools of 2 x 2 pixels in the native CPU code: nothing checked here.

A place is which of its four pixels a window takes, 0 to 3, in the dtype of the pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.backends.image_layout import along_pixels, by_pixels_if_it_can, empty, laid_out
from fastmeta.backends.operation import FakeTensor, operation

__all__ = ["gather", "largest", "pays", "scatter"]

_KERNELS = {torch.float32: "max_pool_float32", torch.float64: "max_pool_float64"}
_LARGEST, _GATHER, _SCATTER = range(3)


def pays(x: Tensor) -> bool:
    """Whether rows fill vectors: else PyTorch's loops over channels take half the time."""
    return x.shape[4] >= 16 or not along_pixels(x)


@operation("max_pool(Tensor x) -> (Tensor, Tensor)")
def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """[T, S, C, H, W] -> the largest pixels [T, S, C, H // 2, W // 2], and their places."""
    by_pixels = along_pixels(x)
    y, at = (empty(x, x.shape[3] // 2, x.shape[4] // 2, by_pixels) for _ in range(2))
    _run(_LARGEST, by_pixels, x, y, at)
    return y, at


@operation("max_pool_gather(Tensor x, Tensor at) -> Tensor")
def gather(x: Tensor, at: Tensor) -> Tensor:
    """The pixels of x at these places."""
    by_pixels = along_pixels(x)
    y = empty(x, at.shape[3], at.shape[4], by_pixels)
    _run(_GATHER, by_pixels, x, y, at)
    return y


@operation("max_pool_scatter(Tensor y, Tensor at, SymInt[] size) -> Tensor")
def scatter(y: Tensor, at: Tensor, size: tuple[int, int]) -> Tensor:
    """[T, S, C, *size]: y at these places, and zeros."""
    by_pixels = by_pixels_if_it_can(at)
    x = empty(at, *size, by_pixels)
    _run(_SCATTER, by_pixels, x, y, at)
    return x


def _run(form: int, by_pixels: bool, x: Tensor, y: Tensor, at: Tensor) -> None:
    if type(x) is FakeTensor:
        return
    laid = [laid_out(z, by_pixels) for z in (x, y, at)]
    kernel: Any = getattr(cpu.native, _KERNELS[x.dtype])
    kernel(
        form, tuple(x.shape), by_pixels, torch.get_num_threads(),
        *((z.data_ptr(), z.stride()) for z in laid),
    )  # fmt: skip
