"""Lower bounds of all distances by products on tensor cores, of which each part keeps the lowest.

The inputs of the products are rounded to TF32, 11 bits, so that products are exact and their sum
is off by what tensor cores lose in adding up. With a = |x - c| and b = |y - c| for any c, D
features and G = 2^-11 + (D + 32) 2^-21, distances v as `distance_tile` takes them are

    squared Euclidean   v >= a^2 + b^2 - 2 s - 2 G (a^2 + b^2) - tiny,     s = (x - c) . (y - c)
    dot                 v >= -s - 2 G a b - tiny,                          c = 0
    unit                v >= 1 - s - 2 G a b - 2^-21

as docs/notes/triton-prototypes.md shows. A bound that is no number, or infinite, counts as -inf.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.distance_tile import DOT, METRICS, SQEUCLIDEAN, rows_at
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.nearest import keep_lowest, keys_of, nothing_yet
from fastmeta.kernels.prototype_configs import BoundBlock

__all__ = ["nearest_bounds"]

_LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_TINY = tl.constexpr(2.0**-100)  # what underflows in products and squares is far below
_INPUT = tl.constexpr(2.0**-11)  # the unit of rounding to TF32
_SUM = tl.constexpr(2.0**-21)  # of a term, in what tensor cores add up: four times float32's


@launchable
@triton.jit
def nearest_bounds_kernel(
    x_ptr, y_ptr, centre_ptr, keys_ptr, Q, N, D, part, x_t, x_q, x_d, y_t, y_n, y_d, c_t, c_d,
    METRIC: tl.constexpr, KEPT: tl.constexpr,
    BQ: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of samples and `part` prototypes, a multiple of BN."""
    blocks = tl.cdiv(Q, BQ)
    t = (tl.program_id(0) // blocks).to(tl.int64)
    q = ((tl.program_id(0) % blocks) * BQ + tl.arange(0, BQ)).to(tl.int64)
    begin = tl.program_id(1).to(tl.int64) * part
    x_square = tl.zeros([BQ], tl.float32)
    for step in range(0, D, BD):
        x = from_centre(
            x_ptr + t * x_t, q, q < Q, x_q, x_d, centre_ptr + t * c_t, c_d, step, D, METRIC, BD
        )
        x_square += tl.sum(x * x, 1)
    lowest = nothing_yet(BQ, KEPT)
    for first in range(0, part, BN):
        n = begin + first + tl.arange(0, BN)
        bound = bounds(
            x_ptr + t * x_t, q, q < Q, x_q, x_d, x_square, y_ptr + t * y_t, n, n < N, y_n, y_d,
            centre_ptr + t * c_t, c_d, D, METRIC, BD,
        )  # fmt: skip
        keys = tl.where((n < N)[None, :], keys_of(bound, n), _LAST)
        lowest = keep_lowest(lowest, keys)
    place = tl.arange(0, KEPT)
    out = keys_ptr + ((t * Q + q[:, None]) * tl.num_programs(1) + tl.program_id(1)) * KEPT
    tl.store(out + place[None, :], lowest, mask=(q < Q)[:, None] & (place >= 0)[None, :])


@triton.jit
def bounds(
    x_ptr, x_rows, x_real, x_stride_row, x_stride_d, x_square,
    y_ptr, y_rows, y_real, y_stride_row, y_stride_d,
    centre_ptr, centre_d, D, METRIC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """[Q, N], none above its distance."""
    products = tl.zeros([x_rows.shape[0], y_rows.shape[0]], tl.float32)
    y_square = tl.zeros([y_rows.shape[0]], tl.float32)
    for step in range(0, D, BD):
        x = from_centre(
            x_ptr, x_rows, x_real, x_stride_row, x_stride_d, centre_ptr, centre_d, step, D,
            METRIC, BD,
        )  # fmt: skip
        y = from_centre(
            y_ptr, y_rows, y_real, y_stride_row, y_stride_d, centre_ptr, centre_d, step, D,
            METRIC, BD,
        )  # fmt: skip
        y_square += tl.sum(y * y, 1)
        products = tl.dot(rounded(x), rounded(y).T, products, input_precision="tf32")
    error = 2.0 * (_INPUT + (D + 32) * _SUM)
    if METRIC == SQEUCLIDEAN:
        squares = x_square[:, None] + y_square[None, :]
        bound = squares - 2.0 * products - (error * squares + _TINY)
    else:
        # Not below 2^-50: the square of a short vector underflows, its product may not.
        lengths = tl.sqrt(x_square + _TINY)[:, None] * tl.sqrt(y_square + _TINY)[None, :]
        if METRIC == DOT:
            bound = -products - (error * lengths + _TINY)
        else:
            bound = (1.0 - products) - (error * lengths + _SUM)
    return tl.where(bound < float("inf"), bound, float("-inf"))


@triton.jit
def from_centre(
    ptr, rows, real, stride_row, stride_d, centre_ptr, centre_d, step, D,
    METRIC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """[rows, BD] from column `step` on, less the centre where the metric allows that."""
    x = rows_at(ptr, rows, real, step, D, stride_row, stride_d, BD, tl.float32)
    if METRIC == SQEUCLIDEAN:
        d = step + tl.arange(0, BD)
        x -= tl.load(centre_ptr + d.to(tl.int64) * centre_d, mask=d < D, other=0.0)[None, :]
    return x


@triton.jit
def rounded(x):
    """To the nearest of TF32. A NaN may become a number: it is still in the sum of squares."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return bits.to(tl.float32, bitcast=True)


def nearest_bounds(
    x: Tensor, prototypes: Tensor, centre: Tensor, metric: str, block: BoundBlock
) -> Tensor:
    """The `block.kept` lowest bounds of each part, as keys [T * Q, parts, kept] in no order.

    x [T, Q, D], prototypes [T, N, D]; the centre [T, D] matters for "sqeuclidean" alone.
    """
    tasks, queries, width = x.shape
    bank = prototypes.shape[1]
    parts = cdiv(bank, block.part)
    keys = x.new_empty(tasks * queries, parts, block.kept, dtype=torch.int64)
    nearest_bounds_kernel[(tasks * cdiv(queries, block.Q), parts)](
        x, prototypes, centre, keys, queries, bank, width, block.part,
        *x.stride(), *prototypes.stride(), *centre.stride(),
        METRIC=METRICS[metric], KEPT=block.kept, BQ=block.Q, BN=block.N, BD=block.D,
        num_warps=block.num_warps,
    )  # fmt: skip
    return keys
