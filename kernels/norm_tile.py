"""What the kernels of norm, activation and pool share, inside a kernel: no kernel itself.

A task's rows are windows of P x P pixels, P = 1 without a pool; the windows at the lower and right
edge may be cut off, and have no output. A tile holds the K = P * P pixels of BR windows and BC
channels, [K, BR, BC] in this order, in which a thread has a window's pixels in its own registers.
Of equal pixels the first is the largest, as in PyTorch.
"""

import triton
import triton.language as tl

__all__ = [
    "affine_of", "channels_of", "is_largest", "largest", "normalized", "parts_at", "pixels_at",
    "pooled", "rows_of_part", "through_pool", "windows",
]  # fmt: skip


@triton.jit
def channels_of(C, BC: tl.constexpr):
    """This program's task and channels, from the first dimension of the grid."""
    blocks = tl.cdiv(C, BC)
    t = (tl.program_id(0) // blocks).to(tl.int64)
    c = ((tl.program_id(0) % blocks) * BC + tl.arange(0, BC)).to(tl.int64)
    return t, c


@triton.jit
def affine_of(
    weight_ptr, bias_ptr, t, c, C, weight_t, weight_c, bias_t, bias_c,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Weight and bias [BC] of channels, 1 and 0 where there are none."""
    weight = tl.full([c.shape[0]], 1.0, ACC)
    bias = tl.zeros([c.shape[0]], ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + t * weight_t + c * weight_c, mask=c < C, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + t * bias_t + c * bias_c, mask=c < C, other=0.0)
    return weight, bias


@triton.jit
def windows(row, S, H, W, P: tl.constexpr):
    """Of windows [BR]: sample, line and column of their first pixel, and whether they are whole."""
    down = tl.cdiv(H, P)
    across = tl.cdiv(W, P)
    line = row // across
    s = line // down
    h = line % down * P
    w = row % across * P
    whole = (s < S) & (h + P <= H) & (w + P <= W)
    return s, h, w, whole


@triton.jit
def pixels_at(ptr, s, h, w, c, S, H, W, C, stride_s, stride_c, stride_h, stride_w, P: tl.constexpr):
    """Pointers [K, BR, BC] to the pixels of windows, and which of them are there."""
    k = tl.arange(0, P * P)
    line = h[None, :] + k[:, None] // P
    column = w[None, :] + k[:, None] % P
    there = (s < S)[None, :] & (line < H) & (column < W)
    place = (
        s[None, :].to(tl.int64) * stride_s
        + line.to(tl.int64) * stride_h
        + column.to(tl.int64) * stride_w
    )
    pointers = ptr + place[:, :, None] + (c * stride_c)[None, None, :]
    return pointers, there[:, :, None] & (c < C)[None, None, :]


@triton.jit
def rows_of_part(part, chunk, S, H, W, P: tl.constexpr):
    """The first window of a part, and the one behind its last."""
    first = part * chunk
    return first, tl.minimum(first + chunk, S * tl.cdiv(H, P) * tl.cdiv(W, P))


@triton.jit
def parts_at(parts, t, c, T, C, PARTS: tl.constexpr):
    """Offsets [PARTS, BC] into [parts, T, C], all read at once, and which of them are there."""
    part = tl.arange(0, PARTS)
    at = (part.to(tl.int64) * T)[:, None] * C + (t * C + c)[None, :]
    return at, (part < parts)[:, None] & (c < C)[None, :]


@triton.jit
def normalized(x, mean, rstd):
    return (x - mean[None, None, :]) * rstd[None, None, :]


@triton.jit
def sign_of(scale, DTYPE: tl.constexpr):
    return tl.where(scale > 0, 1.0, tl.where(scale < 0, -1.0, 0.0)).to(DTYPE)


@triton.jit
def largest(x, scale, P: tl.constexpr):
    """[BR, BC]: the pixel of each whole window that `is_largest` finds, without its place."""
    if P == 1:
        value = tl.sum(x, 0)
    else:
        sign = sign_of(scale, x.dtype)
        first = tl.sum(tl.where(tl.arange(0, P * P)[:, None, None] == 0, x, 0.0), 0)
        best = tl.max(x * sign[None, None, :], 0) * sign[None, :]
        value = tl.where(sign[None, :] == 0, first, best)
    return value


@triton.jit
def is_largest(x, there, scale, P: tl.constexpr):
    """Which pixel of each window is the largest after the norm, as a mask [K, BR, BC].

    Found in x itself: a norm keeps the order, or turns it around where its scale is negative.
    """
    if P == 1:
        chosen = there
    else:
        sign = sign_of(scale, x.dtype)
        signed = tl.where(there, x * sign[None, None, :], float("-inf"))
        largest = tl.max(signed, 0)
        k = tl.arange(0, P * P)[:, None, None]
        first = tl.min(tl.where(signed == largest[None, :, :], k, P * P), 0)
        chosen = there & (k == first[None, :, :])
    return chosen


@triton.jit
def pooled(values, chosen):
    """The chosen pixel of each window, [BR, BC]."""
    return tl.sum(tl.where(chosen, values, 0.0), 0)


@triton.jit
def through_pool(grad, z, chosen, SLOPE: tl.constexpr):
    """The gradient [K, BR, BC] for the norm's output, from that for the pool's [BR, BC]."""
    of_pixels = grad[None, :, :]  # a SLOPE of its own would be float32
    return tl.where(chosen, tl.where(z > 0, of_pixels, of_pixels * SLOPE), 0.0)
