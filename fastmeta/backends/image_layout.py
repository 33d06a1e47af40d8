"""How images [T, S, C, H, W] may lie in memory for the native kernels of norms and pools.

Either the pixels of a channel are side by side, or the channels of a pixel; tasks and samples may
be anywhere. What is written lies as x does.
"""

from __future__ import annotations

from torch import Tensor

from fastmeta.backends import cpu

__all__ = ["along_pixels", "by_pixels_if_it_can", "empty", "in_memory", "laid_out"]


def along_pixels(x: Tensor) -> bool:
    """Whether to go along the pixels of a channel, or along the channels of a pixel."""
    if x.shape[2] == 1 or x.shape[3:].numel() == 1:
        return x.shape[2] == 1
    return by_pixels_if_it_can(x)


def by_pixels_if_it_can(x: Tensor) -> bool:
    """Whether its pixels are side by side, or nothing is."""
    return _fits(x, True) or not _fits(x, False)


def in_memory(x: Tensor) -> Tensor:
    """Zeros that PyTorch keeps nowhere, as a second derivative of abs is, for kernels that read."""
    return x.new_zeros(x.shape) if x._is_zerotensor() else x


def laid_out(x: Tensor, by_pixels: bool) -> Tensor:
    """x, copied if it does not lie like this."""
    if _fits(x, by_pixels):
        return x
    return x.contiguous() if by_pixels else x.movedim(2, 4).contiguous().movedim(4, 2)


def empty(x: Tensor, height: int, width: int, by_pixels: bool) -> Tensor:
    """[T, S, C, height, width], with tasks and samples in the order of x."""
    tasks, samples, channels = x.shape[:3]
    samples_first = x.stride(0) < x.stride(1)
    outer = (samples, tasks) if samples_first else (tasks, samples)
    if by_pixels:
        y = cpu.empty((*outer, channels, height, width), x)
    else:
        y = cpu.empty((*outer, height, width, channels), x).movedim(4, 2)
    return y.transpose(0, 1) if samples_first else y


def _fits(x: Tensor, by_pixels: bool) -> bool:
    _, _, channels, height, width = x.shape
    if not by_pixels:
        return channels == 1 or x.stride(2) == 1
    return (width == 1 or x.stride(4) == 1) and (height == 1 or x.stride(3) == width)
