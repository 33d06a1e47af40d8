"""Norm, activation and pool: the sums over pixels that the backward and its backward stand on."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.norm_configs import NormBlock
from fastmeta.kernels.norm_tile import (
    affine_of,
    channels_of,
    is_largest,
    largest,
    normalized,
    pixels_at,
    pooled,
    rows_of_part,
    windows,
)

__all__ = ["norm_sums"]


@launchable
@triton.jit
def norm_sums_kernel(
    x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, grad_ptr, a_ptr, sums_ptr,
    T, S, H, W, C, chunk,
    x_t, x_s, x_c, x_h, x_w, grad_t, grad_s, grad_c, grad_h, grad_w,
    a_t, a_s, a_c, a_h, a_w, weight_t, weight_c, bias_t, bias_c,
    SLOPE: tl.constexpr, P: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    SECOND: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A program a block of channels and `chunk` windows; see `norm_gradient` for the names."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    COUNT: tl.constexpr = 5 if SECOND else 2
    t, c = channels_of(C, BC)
    known = c < C
    mean = tl.load(mean_ptr + t * C + c, mask=known, other=0.0)
    rstd = tl.load(rstd_ptr + t * C + c, mask=known, other=0.0)
    weight, bias = affine_of(
        weight_ptr, bias_ptr, t, c, C, weight_t, weight_c, bias_t, bias_c,
        HAS_WEIGHT, HAS_BIAS, ACC,
    )  # fmt: skip
    scale = weight * rstd
    # Of each row of a tile by itself: rows are added up across threads once, at the end.
    sum_g = tl.zeros([BR, BC], ACC)
    sum_gx = tl.zeros([BR, BC], ACC)
    sum_a = tl.zeros([BR, BC], ACC)
    sum_ax = tl.zeros([BR, BC], ACC)
    sum_ag = tl.zeros([BR, BC], ACC)
    part = tl.program_id(1)
    begin, end = rows_of_part(part, chunk, S, H, W, P)
    for first in range(begin, end, BR):
        s, h, w, whole = windows(first + tl.arange(0, BR), S, H, W, P)
        pointers, there = pixels_at(x_ptr + t * x_t, s, h, w, c, S, H, W, C, x_s, x_c, x_h, x_w, P)
        x = tl.load(pointers, mask=there, other=0.0)
        output = whole[:, None] & known[None, :]
        place = s.to(tl.int64) * grad_s + (h // P).to(tl.int64) * grad_h
        place += (w // P).to(tl.int64) * grad_w
        grad = tl.load(
            grad_ptr + t * grad_t + place[:, None] + (c * grad_c)[None, :],
            mask=output, other=0.0,
        )  # fmt: skip
        # g is 0 but at the largest pixel of each window.
        normal = (largest(x, scale, P) - mean[None, :]) * rstd[None, :]
        normal = tl.where(output, normal, 0.0)
        g = tl.where(normal * weight[None, :] + bias[None, :] > 0, grad, grad * SLOPE)
        sum_g += g
        sum_gx += g * normal
        if SECOND:
            pointers, _ = pixels_at(a_ptr + t * a_t, s, h, w, c, S, H, W, C, a_s, a_c, a_h, a_w, P)
            a = tl.load(pointers, mask=there, other=0.0)
            sum_a += tl.sum(a, 0)
            sum_ax += tl.sum(a * tl.where(there, normalized(x, mean, rstd), 0.0), 0)
            sum_ag += g * pooled(a, is_largest(x, there, scale, P))
    # Not T.to(...): a T of 1 is a constant to the compiler, and has no such thing.
    row = part.to(tl.int64) * COUNT
    tl.store(sums_ptr + (row * T + t) * C + c, tl.sum(sum_g, 0), mask=known)
    tl.store(sums_ptr + ((row + 1) * T + t) * C + c, tl.sum(sum_gx, 0), mask=known)
    if SECOND:
        tl.store(sums_ptr + ((row + 2) * T + t) * C + c, tl.sum(sum_a, 0), mask=known)
        tl.store(sums_ptr + ((row + 3) * T + t) * C + c, tl.sum(sum_ax, 0), mask=known)
        tl.store(sums_ptr + ((row + 4) * T + t) * C + c, tl.sum(sum_ag, 0), mask=known)


def norm_sums(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, a: Tensor | None, slope: float, pool: int, block: NormBlock,
) -> Tensor:  # fmt: skip
    """Sums of g and g x', and, given a, of a, a x' and a g: [parts, 2 or 5, T, C]"""
    tasks, samples, channels, height, width = x.shape
    count = samples * cdiv(height, pool) * cdiv(width, pool)
    rows = block.windows(pool)
    chunk = block.chunk(count, rows)
    parts = cdiv(count, chunk)
    sums = mean.new_empty(parts, 2 if a is None else 5, tasks, channels)
    affine = [mean if p is None else p for p in (weight, bias)]
    other = x if a is None else a
    norm_sums_kernel[(tasks * cdiv(channels, block.C), parts)](
        x, *affine, mean, rstd, grad, other, sums,
        tasks, samples, height, width, channels, chunk,
        *x.stride(), *grad.stride(), *other.stride(), *affine[0].stride(), *affine[1].stride(),
        SLOPE=slope, P=pool, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        SECOND=a is not None, BR=rows, BC=block.C, num_warps=block.num_warps,
    )  # fmt: skip
    return sums
