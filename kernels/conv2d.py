"""Convolutions of many tasks as products: a row is a pixel, the depth runs over taps and channels.

Nothing of the size of im2col exists: the programs compute where the pixels of a tile are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels import configs
from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.images import channels_last, like_channels_last, shared_channels_last
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.outputs_last import outputs_last
from fastmeta.kernels.products import multiply_add

__all__ = ["convolve"]

_Pair = tuple[int, int]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: _Pair, precision: str
) -> Tensor:
    """[T, S, C, H, W] * [T, O, C, kh, kw] + [T, O] -> [T, S, O, H', W']"""
    (T, S, C, H, W), (O, _, *kernel) = x.shape, weight.shape[1:]
    P, R = (
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip((H, W), kernel, stride, padding, strict=True)
    )
    x = channels_last(x)
    taps = kernel[0] * kernel[1]
    turned = configs.turns_weights(S * P * R, O, taps * C, precision)
    weight, w_t = outputs_last(weight) if turned else shared_channels_last(weight)
    y = like_channels_last(x, (T, S, O, P, R))
    tile = configs.for_convolution(S * P * R, O, C, taps, T, precision, along_columns=turned)
    blocks = cdiv(S * P * R, tile.m)
    _convolve[(T * blocks * cdiv(O, tile.n),)](
        x, weight, bias if bias is not None else x, y, S, H, W, C, O, P, R,
        x.stride(0), x.stride(1), w_t, *(bias.stride() if bias is not None else (0, 0)), blocks,
        **_window(kernel, stride, padding), DENSE=C % tile.k == 0, HAS_BIAS=bias is not None,
        TURNED=turned, PRECISION=precision, BM=tile.m, BN=tile.n, BK=tile.k,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return y


def _window(kernel, stride, padding):
    names = ("KH", "KW", "SH", "SW", "PH", "PW")
    return dict(zip(names, (*kernel, *stride, *padding), strict=True))


@launchable
@triton.jit
def _convolve(
    x, w, bias, y, S, H, W, C, O, P, R, x_t, x_s, w_t, bias_t, bias_o, blocks_m,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DENSE: tl.constexpr, HAS_BIAS: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """DENSE: BK divides C, so that a block of the depth lies within one tap.

    TURNED: the weights are [T, KH, KW, C, O], not [T, O, KH, KW, C].
    """
    block = tl.program_id(0)
    blocks_n = tl.cdiv(O, BN)
    first = (block // blocks_n % blocks_m).to(tl.int64) * BM
    t = (block // blocks_n // blocks_m).to(tl.int64)
    o = block % blocks_n * BN + tl.arange(0, BN)
    area = P * R
    s_first = first // area
    pixel = (first - s_first * area).to(tl.int32) + tl.arange(0, BM)
    s = s_first + pixel // area
    pixel = pixel % area
    p = pixel // R
    row = p * SH - PH
    column = (pixel - p * R) * SW - PW
    inside = s < S
    x_rows = x + t * x_t + s * x_s
    w_k = O if TURNED else 1
    w_columns = w + t * w_t + o.to(tl.int64) * (1 if TURNED else KH * KW * C)
    total = tl.zeros([BM, BN], y.dtype.element_ty)
    blocks_c = C // BK
    steps = KH * KW * blocks_c if DENSE else tl.cdiv(KH * KW * C, BK)
    for step in range(steps):
        if DENSE:
            tap = step // blocks_c
            first_k = tap * C + step % blocks_c * BK
            k = first_k + tl.arange(0, BK)
            i, j = tap // KW, tap % KW
            h, v = row + i, column + j
            known = (inside & (h >= 0) & (h < H) & (v >= 0) & (v < W))[:, None]
            at = ((h * W + v) * C)[:, None] + (k - tap * C)[None, :]
            w_known = (o < O)[None, :]
        else:
            first_k = step * BK
            k = first_k + tl.arange(0, BK)
            tap = k // C
            h = row[:, None] + (tap // KW)[None, :]
            v = column[:, None] + (tap % KW)[None, :]
            known = inside[:, None] & (k < KH * KW * C)[None, :]
            known = known & (h >= 0) & (h < H) & (v >= 0) & (v < W)
            at = (h * W + v) * C + (k - tap * C)[None, :]
            w_known = (k < KH * KW * C)[:, None] & (o < O)[None, :]
        x_tile = tl.load(x_rows[:, None] + at, known, other=0.0)
        w_rows = w_columns + tl.cast(first_k, tl.int64) * w_k
        w_tile = tl.load(w_rows[None, :] + (tl.arange(0, BK) * w_k)[:, None], w_known, other=0.0)
        total = multiply_add(x_tile, w_tile, total, PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + t * bias_t + o * bias_o, o < O, other=0.0)[None, :]
    y_rows = y + ((t * S + s) * area + pixel) * O
    tl.store(y_rows[:, None] + o[None, :], total, inside[:, None] & (o < O)[None, :])


def aot() -> list[AotCase]:
    """A layer of Conv4-64 in every precision, and the first layer, whose depth is taps alone."""
    layer, first = _aot_layer(64, 28), _aot_layer(1, 28)
    few = (layer[0][:, :1, :, :4, :4], *layer[1:])  # too few pixels for a pass over the weights
    ones = [torch.empty([1] * rank, device="meta") for rank in (5, 5, 2)]
    shared = (first[0], first[1][:1].expand(32, -1, -1, -1, -1), first[2])
    return [
        case
        for name, inputs, precision, expected in [
            ("", layer, "ieee", {"tensor_cores": False}),
            ("", layer, "tf32x3", {"tensor_cores": True, "warpgroups": True, "targets": (90,)}),
            ("", layer, "tf32", {"tensor_cores": True, "warpgroups": True}),
            ("", layer, "bf16", {"tensor_cores": True, "warpgroups": True, "targets": (90,)}),
            (" of few pixels", few, "ieee", {"tensor_cores": False, "targets": (90,)}),
            (" of one channel", first, "ieee", {"tensor_cores": False, "targets": (90,)}),
            (" of one channel", first, "tf32", {"tensor_cores": True, "warpgroups": True}),
            (" of one channel, shared weight", shared, "bf16", {"targets": (90,)}),
            (" of one pixel", ones, "ieee", {"targets": (90,)}),
        ]
        for case in cases_of(
            f"conv2d{name} {precision}",
            lambda: convolve(*inputs, (1, 1), (1, 1), precision),  # noqa: B023
            **expected,
        )[-1:]  # what turns weights has a case of its own
    ]


def _aot_layer(C: int, H: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.empty(32, 75, H, H, C, device="meta").permute(0, 1, 4, 2, 3)
    weight = torch.empty(32, 64, 3, 3, C, device="meta").permute(0, 1, 4, 2, 3)
    return x, weight, torch.empty(32, 64, device="meta")
