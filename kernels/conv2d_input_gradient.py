"""The input gradient of a convolution of many tasks.

A stride of more than 1 makes it several correlations with a part of the taps each, one for each
phase of the pixels: none of them reads a zero that a stride would have put between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels import configs
from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.conv2d import _window
from fastmeta.kernels.images import channels_last, like_channels_last, shared_channels_last
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.outputs_last import outputs_last
from fastmeta.kernels.products import multiply_add

__all__ = ["input_gradient"]

_Pair = tuple[int, int]


def input_gradient(
    grad: Tensor, weight: Tensor, size: _Pair, stride: _Pair, padding: _Pair, precision: str
) -> Tensor:
    """[T, S, O, H', W'] and [T, O, C, kh, kw] -> [T, S, C, H, W]"""
    (T, S, O, P, R), (C, *kernel) = grad.shape, weight.shape[2:]
    H, W = size
    grad = channels_last(grad)
    phases = stride[0] * stride[1]
    rows = S * cdiv(H, stride[0]) * cdiv(W, stride[1])  # of the largest phase
    taps = cdiv(kernel[0], stride[0]) * cdiv(kernel[1], stride[1])
    turned = configs.turns_weights(rows, O, taps * O, precision, along_outputs=True)
    weight, w_t = outputs_last(weight) if turned else shared_channels_last(weight)
    x = like_channels_last(grad, (T, S, C, H, W))
    tile = configs.for_convolution(
        rows, C, O, taps, T * phases, precision, along_columns=not turned
    )
    blocks = cdiv(rows, tile.m)
    _input_gradient[(T * phases * blocks * cdiv(C, tile.n),)](
        grad, weight, x, S, H, W, C, O, P, R, grad.stride(0), grad.stride(1), w_t, blocks,
        **_window(kernel, stride, padding), DENSE=O % tile.k == 0,
        TURNED=turned, PRECISION=precision, BM=tile.m, BN=tile.n, BK=tile.k,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return x


@launchable
@triton.jit
def _input_gradient(
    g, w, x, S, H, W, C, O, P, R, g_t, g_s, w_t, blocks_m,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DENSE: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Pixel a + SH u of phase a takes tap i from row u + (a + PH - i) / SH; so do the columns.

    TURNED: the weights are [T, KH, KW, C, O], not [T, O, KH, KW, C].
    """
    block = tl.program_id(0)
    blocks_n = tl.cdiv(C, BN)
    phase = block // blocks_n // blocks_m % (SH * SW)
    t = (block // blocks_n // blocks_m // (SH * SW)).to(tl.int64)
    c = block % blocks_n * BN + tl.arange(0, BN)
    a, b = phase // SW, phase % SW
    rows, columns = (H - a + SH - 1) // SH, (W - b + SW - 1) // SW  # of this phase
    i_first, j_first = (a + PH) % SH, (b + PW) % SW  # its first tap; the others are SH, SW apart
    taps_i, taps_j = (KH - i_first + SH - 1) // SH, (KW - j_first + SW - 1) // SW

    first = (block // blocks_n % blocks_m).to(tl.int64) * BM
    area = tl.maximum(rows * columns, 1)
    s_first = first // area
    pixel = (first - s_first * area).to(tl.int32) + tl.arange(0, BM)
    s = s_first + pixel // area
    pixel = pixel % area
    inside = (s < S) & (rows * columns > 0)
    u = pixel // tl.maximum(columns, 1)
    v = pixel - u * columns
    p_first, q_first = u + (a + PH) // SH, v + (b + PW) // SW
    g_rows = g + t * g_t + s * g_s
    w_columns = w + t * w_t + (c.to(tl.int64) * O if TURNED else c)
    total = tl.zeros([BM, BN], x.dtype.element_ty)
    blocks_o = tl.cdiv(O, BK)
    for step in range(taps_i * taps_j * blocks_o):
        tap = step // blocks_o
        i, j = tap // taps_j, tap % taps_j
        p, q = p_first - i, q_first - j
        o = step % blocks_o * BK + tl.arange(0, BK)
        known = inside & (p >= 0) & (p < P) & (q >= 0) & (q < R)
        at = (p * R + q) * O
        tap_at = (i_first + i * SH) * KW + j_first + j * SW
        if TURNED:
            w_at = tap_at.to(tl.int64) * C * O + o
        else:
            w_at = (o.to(tl.int64) * (KH * KW) + tap_at) * C
        if DENSE:
            g_known, w_known = known[:, None], (c < C)[None, :]
        else:
            g_known = known[:, None] & (o < O)[None, :]
            w_known = (o < O)[:, None] & (c < C)[None, :]
        g_tile = tl.load(g_rows[:, None] + (at[:, None] + o[None, :]), g_known, other=0.0)
        w_tile = tl.load(w_columns[None, :] + w_at[:, None], w_known, other=0.0)
        total = multiply_add(g_tile, w_tile, total, PRECISION)
    x_rows = x + (((t * S + s) * H + a + u * SH) * W + b + v * SW) * C
    tl.store(x_rows[:, None] + c[None, :], total, inside[:, None] & (c < C)[None, :])


def aot() -> list[AotCase]:
    """A layer of Conv4-64, with a stride of 1 and of 2."""
    weight = torch.empty(32, 64, 3, 3, 64, device="meta").permute(0, 1, 4, 2, 3)
    cases = []
    for precision, stride, expected in [
        ("ieee", 1, {"tensor_cores": False}),
        ("tf32x3", 1, {"tensor_cores": True, "warpgroups": True, "targets": (90,)}),
        ("tf32", 1, {"tensor_cores": True, "warpgroups": True}),
        ("bf16", 2, {"tensor_cores": True, "warpgroups": True, "targets": (90,)}),
    ]:
        n = 28 // stride
        grad = torch.empty(32, 75, n, n, 64, device="meta").permute(0, 1, 4, 2, 3)

        def launch(grad=grad, steps=(stride, stride), precision=precision):
            input_gradient(grad, weight, (28, 28), steps, (1, 1), precision)

        name = f"conv2d input gradient, stride {stride}, {precision}"
        cases += cases_of(name, launch, **expected)[-1:]
    one = torch.empty(1, 1, 1, 1, 1, device="meta")
    return cases + cases_of(
        "conv2d input gradient of one pixel",
        lambda: input_gradient(one, one, (1, 1), (1, 1), (0, 0), "ieee"),
        targets=(90,),
    )
