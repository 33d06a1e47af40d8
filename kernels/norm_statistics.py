"""Mean and sum of squared deviations of each channel of each task, of parts of its pixels."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.norm_configs import NormBlock
from fastmeta.kernels.norm_tile import channels_of, parts_at, pixels_at, rows_of_part, windows

__all__ = ["merged", "norm_statistics"]


@launchable
@triton.jit
def norm_statistics_kernel(
    x_ptr, mean_ptr, deviation_ptr, T, S, H, W, C, chunk, x_t, x_s, x_c, x_h, x_w,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A program a block of channels and `chunk` pixels.

    Each row of a tile keeps mean and deviation of its own pixels as Welford 1962 does, of
    differences to the channel's first pixel, so that a common offset loses nothing in rounding;
    rows are merged as Chan, Golub and LeVeque 1983 do.
    """
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    t, c = channels_of(C, BC)
    part = tl.program_id(1)
    begin, end = rows_of_part(part, chunk, S, H, W, 1)
    origin = tl.load(x_ptr + t * x_t + c * x_c, mask=c < C, other=0.0).to(ACC)
    mean = tl.zeros([BR, BC], ACC)
    deviation = tl.zeros([BR, BC], ACC)
    for first in range(begin, end, BR):
        row = first + tl.arange(0, BR)
        s, h, w, _ = windows(row, S, H, W, 1)
        pointers, there = pixels_at(x_ptr + t * x_t, s, h, w, c, S, H, W, C, x_s, x_c, x_h, x_w, 1)
        there = there & (row < end)[None, :, None]
        x = tl.sum(tl.load(pointers, mask=there, other=0.0), 0).to(ACC)
        weight = 1.0 / ((first - begin) // BR + 1).to(ACC)
        off = tl.where((row < end)[:, None], x - origin[None, :] - mean, 0.0)
        mean += off * weight
        deviation += off * off * (1.0 - weight)
    count = tl.maximum((end - begin - tl.arange(0, BR) + BR - 1) // BR, 0).to(ACC)[:, None]
    of_part = tl.sum(mean * count, 0) / (end - begin)
    off = mean - of_part[None, :]
    at = (part.to(tl.int64) * T + t) * C + c
    tl.store(mean_ptr + at, origin + of_part, mask=c < C)
    tl.store(deviation_ptr + at, tl.sum(deviation + off * off * count, 0), mask=c < C)


@triton.jit
def merged(
    mean_ptr, deviation_ptr, parts, pixels, chunk, t, c, T, C,
    EPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """mean and 1 / sqrt(variance + eps) [BC] of all pixels, from those of the parts."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    origin = tl.load(mean_ptr + t * C + c, mask=c < C, other=0.0)
    at, there = parts_at(parts, t, c, T, C, PARTS)
    of_parts = tl.load(mean_ptr + at, mask=there, other=0.0)
    deviation = tl.load(deviation_ptr + at, mask=there, other=0.0)
    first = tl.arange(0, PARTS) * chunk
    count = tl.maximum(tl.minimum(pixels - first, chunk), 0).to(ACC)[:, None]
    off = tl.where(there, of_parts - origin[None, :], 0.0)
    mean = tl.sum(off * count, 0) / pixels
    off = tl.where(there, off - mean[None, :], 0.0)
    variance = tl.sum(deviation + off * off * count, 0) / pixels
    variance = tl.where(c < C, variance, 1.0) + EPS
    root = tl.sqrt_rn(variance) if ACC == tl.float32 else tl.sqrt(variance)
    return origin + mean, 1.0 / root


def norm_statistics(x: Tensor, block: NormBlock) -> tuple[Tensor, Tensor]:
    """[T, S, C, H, W] -> means and sums of squared deviations [parts, T, C]"""
    tasks, samples, channels, height, width = x.shape
    pixels = samples * height * width
    chunk = block.chunk(pixels, block.rows)
    parts = cdiv(pixels, chunk)
    sizes, strides = _in_a_row(x)
    mean, deviation = (x.new_empty(parts, tasks, channels) for _ in range(2))
    norm_statistics_kernel[(tasks * cdiv(channels, block.C), parts)](
        x, mean, deviation, tasks, *sizes, channels, chunk, *strides,
        BR=block.rows, BC=block.C, num_warps=block.num_warps,
    )  # fmt: skip
    return mean, deviation


def _in_a_row(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Samples, height and width, and the strides: of [T, pixels, C, 1, 1] where that is the same.

    Then the compiler finds nothing to divide by.
    """
    _, samples, _, height, width = x.shape
    of_task, of_sample, of_channel, of_line, of_pixel = x.stride()
    if of_line == width * of_pixel and of_sample == height * of_line:
        return (samples * height * width, 1, 1), (of_task, of_pixel, of_channel, of_line, of_pixel)
    return (samples, height, width), x.stride()
