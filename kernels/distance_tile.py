"""Distances of a block of samples to a block of prototypes, inside a kernel: no kernel itself."""

import triton
import triton.language as tl

__all__ = ["COSINE", "EUCLIDEAN", "METRICS", "SQEUCLIDEAN", "distances", "rows_at"]

# "unit" is "cosine" of vectors that have length 1 or 0 already.
METRICS = {"sqeuclidean": 0, "euclidean": 1, "cosine": 2, "dot": 3, "unit": 4}
SQEUCLIDEAN = tl.constexpr(0)
EUCLIDEAN = tl.constexpr(1)
COSINE = tl.constexpr(2)
DOT = tl.constexpr(3)
UNIT = tl.constexpr(4)


@triton.jit
def rows_at(ptr, rows, real, begin, D, stride_row, stride_d, BD: tl.constexpr, ACC: tl.constexpr):
    """[rows, BD] from column `begin` on, with zeros for what is not there."""
    d = begin + tl.arange(0, BD)
    offsets = rows[:, None] * stride_row + d[None, :].to(tl.int64) * stride_d
    return tl.load(ptr + offsets, mask=real[:, None] & (d < D)[None, :], other=0.0).to(ACC)


@triton.jit
def row_scales(ptr, rows, real, D, stride_row, stride_d, BD: tl.constexpr, ACC: tl.constexpr):
    """The largest |x| of each row, 1 for a row of zeros: divided by it, squares stay in range."""
    largest = tl.zeros([rows.shape[0]], ACC)
    for begin in range(0, D, BD):
        x = rows_at(ptr, rows, real, begin, D, stride_row, stride_d, BD, ACC)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    return tl.where(largest == 0, 1.0, largest)


@triton.jit
def distances(
    x_ptr, x_rows, x_real, x_stride_row, x_stride_d,
    y_ptr, y_rows, y_real, y_stride_row, y_stride_d,
    D, METRIC: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Distances [Q, N], and for cosine 1/|x| [Q] and 1/|y| [N], which are 0 for rows of zeros.

    A thread adds up its own columns of D for each pair, and the sums of threads are added once,
    at the end: no step of the loop waits for another thread.
    """
    Q: tl.constexpr = x_rows.shape[0]
    N: tl.constexpr = y_rows.shape[0]
    x_factor = tl.zeros([Q], ACC)
    y_factor = tl.zeros([N], ACC)
    if METRIC == COSINE:
        x_scale = row_scales(x_ptr, x_rows, x_real, D, x_stride_row, x_stride_d, BD, ACC)
        y_scale = row_scales(y_ptr, y_rows, y_real, D, y_stride_row, y_stride_d, BD, ACC)
        x_square = tl.zeros([Q, BD], ACC)
        y_square = tl.zeros([N, BD], ACC)
    sums = tl.zeros([Q, N, BD], ACC)
    for begin in tl.range(0, D, BD, num_stages=3):
        x = rows_at(x_ptr, x_rows, x_real, begin, D, x_stride_row, x_stride_d, BD, ACC)
        y = rows_at(y_ptr, y_rows, y_real, begin, D, y_stride_row, y_stride_d, BD, ACC)
        if METRIC == COSINE:
            x = x / x_scale[:, None]
            y = y / y_scale[:, None]
            x_square += x * x
            y_square += y * y
        if METRIC == SQEUCLIDEAN or METRIC == EUCLIDEAN:
            difference = x[:, None, :] - y[None, :, :]
            sums += difference * difference
        else:
            sums += x[:, None, :] * y[None, :, :]
    total = tl.sum(sums, 2)
    if METRIC == EUCLIDEAN:
        total = tl.sqrt_rn(total) if ACC == tl.float32 else tl.sqrt(total)
    if METRIC == DOT:
        total = -total
    if METRIC == UNIT:
        total = 1.0 - total
    if METRIC == COSINE:
        x_factor = inverse_root(tl.sum(x_square, 1), ACC)
        y_factor = inverse_root(tl.sum(y_square, 1), ACC)
        total = 1.0 - total * x_factor[:, None] * y_factor[None, :]
        x_factor = x_factor / x_scale
        y_factor = y_factor / y_scale
    return total, x_factor, y_factor


@triton.jit
def inverse_root(square, ACC: tl.constexpr):
    """1 / sqrt(square), rounded as IEEE says, and 0 for 0."""
    safe = tl.where(square == 0, 1.0, square)
    root = tl.sqrt_rn(safe) if ACC == tl.float32 else tl.sqrt(safe)
    return tl.where(square == 0, 0.0, 1.0 / root)
