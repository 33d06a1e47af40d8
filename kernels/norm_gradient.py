"""Norm, activation and pool: the backward and the second backward.

With x' the normalised pixels, g the gradient for the norm's output (that for the pool's, sent back
through pool and activation), scale = weight * rstd, and m(.) means over the pixels of a channel,

    backward       for x: scale (g - m(g) - x' m(g x'));  for weight: sum of g x';  for bias: of g

and, from gradients a, u, v for what the backward returns for x, weight and bias,

    second         for g: u x' + v + scale (a - m(a) - x' m(a x'))
                   for x: p (g - m(g)) + q (a - m(a)) + k x'
                   for weight: n rstd e
        where      e = m(a g) - m(a) m(g) - m(a x') m(g x'),  p = rstd (u - scale m(a x')),
                   q = -scale rstd m(g x'),  k = rstd ((2 scale m(a x') - u) m(g x') - scale e)
"""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.configs import power_of_2
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.norm_configs import NormBlock, norm_block
from fastmeta.kernels.norm_forward import like_pixels
from fastmeta.kernels.norm_sums import norm_sums
from fastmeta.kernels.norm_tile import (
    affine_of,
    channels_of,
    is_largest,
    normalized,
    parts_at,
    pixels_at,
    pooled,
    rows_of_part,
    through_pool,
    windows,
)

__all__ = ["norm_gradient", "norm_second"]


@triton.jit
def mean_of_parts(
    ptr, parts, which: tl.constexpr, COUNT: tl.constexpr, n, t, c, T, C, PARTS: tl.constexpr
):
    """[BC]: sum number `which` of COUNT, over all parts, divided by n."""
    at, there = parts_at(parts, which * T + t, c, COUNT * T, C, PARTS)
    return tl.sum(tl.load(ptr + at, mask=there, other=0.0), 0) / n


@launchable
@triton.jit
def norm_gradient_kernel(
    x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, grad_ptr, sums_ptr,
    a_ptr, u_ptr, v_ptr, for_x_ptr, for_grad_ptr, for_weight_ptr, for_bias_ptr,
    T, S, H, W, C, parts, chunk,
    x_t, x_s, x_c, x_h, x_w, grad_t, grad_s, grad_c, grad_h, grad_w,
    a_t, a_s, a_c, a_h, a_w, for_x_t, for_x_s, for_x_c, for_x_h, for_x_w,
    for_grad_t, for_grad_s, for_grad_c, for_grad_h, for_grad_w,
    weight_t, weight_c, bias_t, bias_c, u_t, u_c, v_t, v_c,
    SLOPE: tl.constexpr, P: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    SECOND: tl.constexpr, PARTS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A program a block of channels and `chunk` windows."""
    COUNT: tl.constexpr = 5 if SECOND else 2
    t, c = channels_of(C, BC)
    known = c < C
    mean = tl.load(mean_ptr + t * C + c, mask=known, other=0.0)
    rstd = tl.load(rstd_ptr + t * C + c, mask=known, other=0.0)
    weight, bias = affine_of(
        weight_ptr, bias_ptr, t, c, C, weight_t, weight_c, bias_t, bias_c,
        HAS_WEIGHT, HAS_BIAS, mean.dtype,
    )  # fmt: skip
    scale = weight * rstd
    n = tl.zeros([1], mean.dtype) + S * H * W
    m_g = mean_of_parts(sums_ptr, parts, 0, COUNT, n, t, c, T, C, PARTS)
    m_gx = mean_of_parts(sums_ptr, parts, 1, COUNT, n, t, c, T, C, PARTS)
    if SECOND:
        m_a = mean_of_parts(sums_ptr, parts, 2, COUNT, n, t, c, T, C, PARTS)
        m_ax = mean_of_parts(sums_ptr, parts, 3, COUNT, n, t, c, T, C, PARTS)
        m_ag = mean_of_parts(sums_ptr, parts, 4, COUNT, n, t, c, T, C, PARTS)
        e = m_ag - m_a * m_g - m_ax * m_gx
        u = tl.load(u_ptr + t * u_t + c * u_c, mask=known, other=0.0)
        v = tl.load(v_ptr + t * v_t + c * v_c, mask=known, other=0.0)
    if tl.program_id(1) == 0:
        if SECOND:
            tl.store(for_weight_ptr + t * C + c, n * rstd * e, mask=known)
        else:
            tl.store(for_weight_ptr + t * C + c, n * m_gx, mask=known)
            tl.store(for_bias_ptr + t * C + c, n * m_g, mask=known)

    # The last part first: of it the pass before has left the most in L2.
    part = tl.num_programs(1) - 1 - tl.program_id(1)
    begin, end = rows_of_part(part, chunk, S, H, W, P)
    for first in range(begin, end, BR):
        s, h, w, whole = windows(first + tl.arange(0, BR), S, H, W, P)
        pointers, there = pixels_at(x_ptr + t * x_t, s, h, w, c, S, H, W, C, x_s, x_c, x_h, x_w, P)
        x = tl.load(pointers, mask=there, other=0.0)
        i, j = (h // P).to(tl.int64), (w // P).to(tl.int64)
        output = whole[:, None] & known[None, :]
        pointers = outputs_at(grad_ptr, t, s, i, j, c, grad_t, grad_s, grad_c, grad_h, grad_w)
        grad = tl.load(pointers, mask=output, other=0.0)
        normal = normalized(x, mean, rstd)
        z = normal * weight[None, None, :] + bias[None, None, :]
        chosen = is_largest(x, there, scale, P)
        g = through_pool(grad, z, chosen, SLOPE)
        if SECOND:
            pointers, _ = pixels_at(a_ptr + t * a_t, s, h, w, c, S, H, W, C, a_s, a_c, a_h, a_w, P)
            a = tl.load(pointers, mask=there, other=0.0) - m_a[None, None, :]
            for_x, for_g = second_gradients(a, u, v, g, normal, scale, rstd, m_g, m_gx, m_ax, e)
            for_g = tl.where(z > 0, for_g, for_g * SLOPE)
            pointers = outputs_at(
                for_grad_ptr, t, s, i, j, c,
                for_grad_t, for_grad_s, for_grad_c, for_grad_h, for_grad_w,
            )  # fmt: skip
            tl.store(pointers, pooled(for_g, chosen), mask=output)
        else:
            for_x = scale[None, None, :] * (g - m_g[None, None, :] - normal * m_gx[None, None, :])
        pointers, _ = pixels_at(
            for_x_ptr + t * for_x_t, s, h, w, c, S, H, W, C, for_x_s, for_x_c, for_x_h, for_x_w, P
        )  # fmt: skip
        tl.store(pointers, for_x, mask=there)


@triton.jit
def outputs_at(ptr, t, s, i, j, c, stride_t, stride_s, stride_c, stride_h, stride_w):
    """Pointers [BR, BC] to what the pool makes of windows."""
    place = s.to(tl.int64) * stride_s + i * stride_h + j * stride_w
    return ptr + t * stride_t + place[:, None] + (c * stride_c)[None, :]


@triton.jit
def second_gradients(a, u, v, g, normal, scale, rstd, m_g, m_gx, m_ax, e):
    """For x and for the norm's output, [K, BR, BC]; a comes less its mean."""
    of_g = rstd * (u - scale * m_ax)
    of_a = -scale * rstd * m_gx
    of_x = rstd * ((2.0 * scale * m_ax - u) * m_gx - scale * e)
    for_x = (
        of_g[None, None, :] * (g - m_g[None, None, :])
        + of_a[None, None, :] * a
        + of_x[None, None, :] * normal
    )
    for_g = (u - scale * m_ax)[None, None, :] * normal + v[None, None, :] + scale[None, None, :] * a
    return for_x, for_g


def norm_gradient(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, slope: float, pool: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for x, weight [T, C] and bias [T, C], from that for y of `norm_forward`."""
    block = norm_block(x)
    sums = norm_sums(grad, x, weight, bias, mean, rstd, None, slope, pool, block)
    for_x = like_pixels(x, *x.shape[3:])
    for_weight, for_bias = mean.new_empty(mean.shape), mean.new_empty(mean.shape)
    _launch(
        block, False, slope, pool, (x, weight, bias, mean, rstd, grad, sums),
        (x, mean, mean), (for_x, grad, for_weight, for_bias),
    )  # fmt: skip
    return for_x, for_weight, for_bias


def norm_second(
    a: Tensor, u: Tensor, v: Tensor, grad: Tensor, x: Tensor, weight: Tensor | None,
    bias: Tensor | None, mean: Tensor, rstd: Tensor, slope: float, pool: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for grad, x and weight, from those (a, u, v) for what `norm_gradient` returns."""
    block = norm_block(x)
    sums = norm_sums(grad, x, weight, bias, mean, rstd, a, slope, pool, block)
    for_x, for_grad = like_pixels(x, *x.shape[3:]), like_pixels(x, *grad.shape[3:])
    for_weight = mean.new_empty(mean.shape)
    _launch(
        block, True, slope, pool, (x, weight, bias, mean, rstd, grad, sums),
        (a, u, v), (for_x, for_grad, for_weight, for_weight),
    )  # fmt: skip
    return for_grad, for_x, for_weight


def _launch(
    block: NormBlock, second: bool, slope: float, pool: int,
    given: tuple, directions: tuple, out: tuple,
) -> None:  # fmt: skip
    x, weight, bias, mean, rstd, grad, sums = given
    a, u, v = directions
    for_x, for_grad, for_weight, for_bias = out
    tasks, samples, channels, height, width = x.shape
    affine = [mean if p is None else p for p in (weight, bias)]
    count = samples * cdiv(height, pool) * cdiv(width, pool)
    rows = block.windows(pool)
    chunk = block.chunk(count, rows)
    norm_gradient_kernel[(tasks * cdiv(channels, block.C), cdiv(count, chunk))](
        x, *affine, mean, rstd, grad, sums, a, u, v, for_x, for_grad, for_weight, for_bias,
        tasks, samples, height, width, channels, len(sums), chunk,
        *x.stride(), *grad.stride(), *a.stride(), *for_x.stride(), *for_grad.stride(),
        *affine[0].stride(), *affine[1].stride(), *u.stride(), *v.stride(),
        SLOPE=slope, P=pool, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        SECOND=second, PARTS=power_of_2(len(sums)), BR=rows, BC=block.C, num_warps=block.num_warps,
    )  # fmt: skip
