"""Mean and sum of squared deviations of each channel of each task, of parts of its pixels."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.norm_configs import NormBlock
from fastmeta.kernels.norm_tile import channels_of, pixels_at, windows

__all__ = ["merged", "norm_statistics"]


@launchable
@triton.jit
def norm_statistics_kernel(
    x_ptr, mean_ptr, deviation_ptr, T, S, H, W, C, chunk, x_t, x_s, x_c, x_h, x_w,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A program a block of channels and `chunk` pixels.

    Means and deviations of tiles are merged as Chan, Golub and LeVeque 1983 do, of differences to
    the channel's first pixel, so that a common offset loses nothing in rounding.
    """
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    t, c = channels_of(C, BC)
    part = tl.program_id(1)
    end = tl.minimum((part + 1) * chunk, S * H * W)
    origin = tl.load(x_ptr + t * x_t + c * x_c, mask=c < C, other=0.0).to(ACC)
    mean = tl.zeros([BC], ACC)
    deviation = tl.zeros([BC], ACC)
    for first in range(part * chunk, end, BR):
        row = first + tl.arange(0, BR)
        s, h, w, _ = windows(row, S, H, W, 1)
        pointers, there = pixels_at(x_ptr + t * x_t, s, h, w, c, S, H, W, C, x_s, x_c, x_h, x_w, 1)
        there = there & (row < end)[:, None, None]
        x = tl.load(pointers, mask=there, other=0.0).to(ACC)
        count = (first - part * chunk).to(ACC)
        new = tl.minimum(end - first, BR).to(ACC)
        x = tl.where((row < end)[:, None], tl.sum(x, 1) - origin[None, :], 0.0)
        of_tile = tl.sum(x, 0) / new
        off = tl.where((row < end)[:, None], x - of_tile[None, :], 0.0)
        shift = of_tile - mean
        total = count + new
        mean += shift * (new / total)
        deviation += tl.sum(off * off, 0) + shift * shift * (count * new / total)
    at = (part.to(tl.int64) * T + t) * C + c
    tl.store(mean_ptr + at, origin + mean, mask=c < C)
    tl.store(deviation_ptr + at, deviation, mask=c < C)


@triton.jit
def merged(mean_ptr, deviation_ptr, parts, pixels, chunk, t, c, T, C, EPS: tl.constexpr):
    """mean and 1 / sqrt(variance + eps) [BC] of all pixels, from those of the parts in order."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    at = t * C + c
    mean = tl.load(mean_ptr + at, mask=c < C, other=0.0)
    deviation = tl.load(deviation_ptr + at, mask=c < C, other=1.0)
    for part in range(1, parts):
        at = (tl.full([1], part, tl.int64) * T + t) * C + c
        new = tl.minimum(chunk, pixels - part * chunk).to(ACC)
        count = (part * chunk).to(ACC)
        shift = tl.load(mean_ptr + at, mask=c < C, other=0.0) - mean
        mean += shift * (new / (count + new))
        deviation += tl.load(deviation_ptr + at, mask=c < C, other=0.0)
        deviation += shift * shift * (count * new / (count + new))
    variance = deviation / pixels + EPS
    root = tl.sqrt_rn(variance) if ACC == tl.float32 else tl.sqrt(variance)
    return mean, 1.0 / root


def norm_statistics(x: Tensor, block: NormBlock) -> tuple[Tensor, Tensor]:
    """[T, S, C, H, W] -> means and sums of squared deviations [parts, T, C]"""
    tasks, samples, channels, height, width = x.shape
    pixels = samples * height * width
    parts = cdiv(pixels, block.chunk)
    mean, deviation = (x.new_empty(parts, tasks, channels) for _ in range(2))
    norm_statistics_kernel[(tasks * cdiv(channels, block.C), parts)](
        x, mean, deviation, tasks, samples, height, width, channels, block.chunk, *x.stride(),
        BR=block.rows, BC=block.C, num_warps=block.num_warps,
    )  # fmt: skip
    return mean, deviation
