"""The weight gradient of a convolution of many tasks, and with it that of the bias.

The sum runs over all pixels of a task's samples; where that leaves too few programs it is split
into parts, which are put together in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels import configs
from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.conv2d import _window
from fastmeta.kernels.images import channels_last
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.linear import in_order
from fastmeta.kernels.products import multiply_add

__all__ = ["weight_gradient"]

_Pair = tuple[int, int]


def weight_gradient(
    grad: Tensor, x: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair,
    with_sums: bool, precision: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """[T, S, O, H', W'] and [T, S, C, H, W] -> [T, O, C, kh, kw], and the sums [T, O] or None"""
    (T, S, O, P, R), (C, H, W) = grad.shape, x.shape[2:]
    grad, x = channels_last(grad), channels_last(x)
    taps = kernel[0] * kernel[1]
    tile = configs.for_weight_gradient(O, C, taps, S * P * R, precision)
    splits = configs.splits(tile, O, taps * C, S * P * R, T)
    steps = cdiv(cdiv(S * P * R, tile.k), splits)
    splits = cdiv(S * P * R, steps * tile.k)
    parts = grad.new_empty(splits, T, O, *kernel, C)
    sums = grad.new_empty(splits, T, O if with_sums else 0)
    blocks_m, blocks_n = cdiv(O, tile.m), cdiv(taps * C, tile.n)
    _weight_gradient[(T * splits * blocks_m * blocks_n,)](
        grad, x, parts, sums, S, H, W, C, O, T, steps, splits,
        grad.stride(0), grad.stride(1), x.stride(0), x.stride(1),
        **_window(kernel, stride, padding), P=P, R=R, DENSE=C % tile.n == 0,
        HAS_SUMS=with_sums, PRECISION=precision, BM=tile.m, BN=tile.n, BK=tile.k,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    wanted, of_bias = in_order(parts, sums, with_sums)
    return wanted.permute(0, 1, 4, 2, 3), of_bias


@launchable
@triton.jit
def _weight_gradient(
    g, x, y, sums, S, H, W, C, O, T, steps, splits, g_t, g_s, x_t, x_s,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
    DENSE: tl.constexpr, HAS_SUMS: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[split, t, o, n] with n over taps and channels; DENSE: BN divides C, so n is of one tap."""
    block = tl.program_id(0)
    N = KH * KW * C
    blocks_n, blocks_m = tl.cdiv(N, BN), tl.cdiv(O, BM)
    n_block = block % blocks_n
    split = (block // blocks_n // blocks_m % splits).to(tl.int64)
    t = (block // blocks_n // blocks_m // splits).to(tl.int64)
    o = block // blocks_n % blocks_m * BM + tl.arange(0, BM)
    n = n_block * BN + tl.arange(0, BN)
    if DENSE:
        tap = n_block * BN // C
        i, j = tap // KW, tap % KW
    else:
        tap = n // C
        i, j = (tap // KW)[None, :], (tap % KW)[None, :]
    n_at = (i * W + j) * C + (n - tap * C)[None, :]
    total = tl.zeros([BM, BN], y.dtype.element_ty)
    g_sum = tl.zeros([BM], y.dtype.element_ty)
    first = split * steps * BK
    s_first = first // (P * R)
    pixel_first = (first - s_first * (P * R)).to(tl.int32)
    for _ in range(steps):
        pixel = pixel_first + tl.arange(0, BK)
        s = pixel // (P * R)  # from s_first on
        pixel = pixel - s * (P * R)
        row, column = pixel // R * SH - PH, pixel % R * SW - PW
        inside = s < S - s_first
        h, v = row[:, None] + i, column[:, None] + j
        known = inside[:, None] & (h >= 0) & (h < H) & (v >= 0) & (v < W)
        if not DENSE:
            known = known & (n < N)[None, :]
        g_images = g + (t * g_t + s_first * g_s) + s.to(tl.int64) * g_s
        x_images = x + (t * x_t + s_first * x_s) + s.to(tl.int64) * x_s
        g_tile = tl.load(
            g_images[None, :] + ((pixel * O)[None, :] + o[:, None]),
            (o < O)[:, None] & inside[None, :],
            other=0.0,
        )
        x_at = ((row * W + column) * C)[:, None] + n_at
        x_tile = tl.load(x_images[:, None] + x_at, known, other=0.0)
        total = multiply_add(g_tile, x_tile, total, PRECISION)
        if HAS_SUMS:
            g_sum += tl.sum(g_tile, 1)
        pixel_first += BK
        s_first += pixel_first // (P * R)
        pixel_first = pixel_first % (P * R)
    y_row = (split * T + t) * O + o
    tl.store(y + y_row[:, None] * N + n[None, :], total, (o < O)[:, None] & (n < N)[None, :])
    if HAS_SUMS:
        tl.store(sums + y_row, g_sum, (o < O) & (n_block == 0))


def aot() -> list[AotCase]:
    """A layer of Conv4-64, and the first layer, whose columns are taps alone."""
    grad = torch.empty(32, 75, 28, 28, 64, device="meta").permute(0, 1, 4, 2, 3)
    images = torch.empty(32, 75, 1, 28, 28, device="meta")
    cases = []
    for name, x, precision, expected in [
        ("", grad, "ieee", {"tensor_cores": False}),
        ("", grad, "tf32x3", {"tensor_cores": True, "warpgroups": True, "targets": (90,)}),
        ("", grad, "tf32", {"tensor_cores": True}),
        ("", grad, "bf16", {"tensor_cores": True, "warpgroups": True, "targets": (90,)}),
        (" of one channel", images, "ieee", {"tensor_cores": False, "targets": (90,)}),
        (" of one channel", images, "tf32", {"tensor_cores": True, "targets": (90,)}),
        (" of one channel", images, "bf16", {"tensor_cores": True, "targets": (90,)}),
    ]:

        def launch(x=x, precision=precision):
            weight_gradient(grad, x, (3, 3), (1, 1), (1, 1), True, precision)

        cases += cases_of(f"conv2d weight gradient{name} {precision}", launch, **expected)[:1]
    one = torch.empty(1, 1, 1, 1, 1, device="meta")
    return cases + cases_of(
        "conv2d weight gradient of one pixel",
        lambda: weight_gradient(one, one, (1, 1), (1, 1), (0, 0), True, "ieee"),
        targets=(90,),
    )
