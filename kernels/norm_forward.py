"""Norm, activation and pool: the forward."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.configs import power_of_2
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.norm_configs import norm_block
from fastmeta.kernels.norm_statistics import merged, norm_statistics
from fastmeta.kernels.norm_tile import (
    affine_of,
    channels_of,
    largest,
    pixels_at,
    rows_of_part,
    windows,
)

__all__ = ["norm_forward"]


@launchable
@triton.jit
def norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, part_mean_ptr, part_deviation_ptr, y_ptr, mean_ptr, rstd_ptr,
    T, S, H, W, C, parts, pixels_of_part, chunk,
    x_t, x_s, x_c, x_h, x_w, y_t, y_s, y_c, y_h, y_w, weight_t, weight_c, bias_t, bias_c,
    EPS: tl.constexpr, SLOPE: tl.constexpr, P: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    PARTS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A program a block of channels and `chunk` windows."""
    t, c = channels_of(C, BC)
    mean, rstd = merged(
        part_mean_ptr, part_deviation_ptr, parts, S * H * W, pixels_of_part, t, c, T, C, EPS, PARTS
    )  # fmt: skip
    if tl.program_id(1) == 0:
        tl.store(mean_ptr + t * C + c, mean, mask=c < C)
        tl.store(rstd_ptr + t * C + c, rstd, mask=c < C)
    weight, bias = affine_of(
        weight_ptr, bias_ptr, t, c, C, weight_t, weight_c, bias_t, bias_c,
        HAS_WEIGHT, HAS_BIAS, mean.dtype,
    )  # fmt: skip
    scale = weight * rstd
    # The last part first: of it the pass before has left the most in L2.
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    begin, end = rows_of_part(part, chunk, S, H, W, P)
    for first in range(begin, end, BR):
        s, h, w, whole = windows(first + tl.arange(0, BR), S, H, W, P)
        pointers, there = pixels_at(x_ptr + t * x_t, s, h, w, c, S, H, W, C, x_s, x_c, x_h, x_w, P)
        x = tl.load(pointers, mask=there, other=0.0)
        normal = (largest(x, scale, P) - mean[None, :]) * rstd[None, :]
        y = normal * weight[None, :] + bias[None, :]
        y = tl.where(y > 0, y, y * SLOPE)
        place = s.to(tl.int64) * y_s + (h // P).to(tl.int64) * y_h + (w // P).to(tl.int64) * y_w
        pointers = y_ptr + t * y_t + place[:, None] + (c * y_c)[None, :]
        tl.store(pointers, y, mask=whole[:, None] & (c < C)[None, :])


def norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """[T, S, C, H, W] and twice [T, C] or None -> y, mean [T, C], 1 / deviation [T, C].

    y is [T, S, C, H // pool, W // pool] with channels where x has them. `slope` is the
    activation's below 0: 0 for relu, 1 for none.
    """
    tasks, samples, channels, height, width = x.shape
    block = norm_block(x)
    part_mean, part_deviation = norm_statistics(x, block)
    y = like_pixels(x, height // pool, width // pool)
    mean, rstd = (x.new_empty(tasks, channels) for _ in range(2))
    affine = [mean if p is None else p for p in (weight, bias)]
    count = samples * cdiv(height, pool) * cdiv(width, pool)
    rows = block.windows(pool)
    chunk = block.chunk(count, rows)
    norm_forward_kernel[(tasks * cdiv(channels, block.C), cdiv(count, chunk))](
        x, *affine, part_mean, part_deviation, y, mean, rstd,
        tasks, samples, height, width, channels,
        len(part_mean), block.chunk(samples * height * width, block.rows), chunk,
        *x.stride(), *y.stride(), *affine[0].stride(), *affine[1].stride(),
        EPS=eps, SLOPE=slope, P=pool, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        PARTS=power_of_2(len(part_mean)), BR=rows, BC=block.C, num_warps=block.num_warps,
    )  # fmt: skip
    return y, mean, rstd


def like_pixels(x: Tensor, height: int, width: int) -> Tensor:
    """[T, S, C, height, width], with channels last in memory where those of x are."""
    tasks, samples, channels = x.shape[:3]
    if x.stride(2) != 1 or channels == 1:
        return x.new_empty(tasks, samples, channels, height, width)
    return x.new_empty(tasks, samples, height, width, channels).movedim(4, 2)
