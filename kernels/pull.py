"""Weighted sums of differences: the gradient of squared distances, and parts of higher ones."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.distance_tile import rows_at
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype_configs import pull_block

__all__ = ["pull"]


@launchable
@triton.jit
def pull_kernel(
    h_ptr, x_ptr, y_ptr, out_ptr, Q, N, D, h_t, h_q, h_n, x_t, x_q, x_d, y_t, y_n, y_d,
    BQ: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of samples and of D, over all prototypes."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    blocks = tl.cdiv(Q, BQ)
    t = (tl.program_id(0) // blocks).to(tl.int64)
    q = ((tl.program_id(0) % blocks) * BQ + tl.arange(0, BQ)).to(tl.int64)
    begin = tl.program_id(1) * BD
    x = rows_at(x_ptr + t * x_t, q, q < Q, begin, D, x_q, x_d, BD, ACC)
    total = tl.zeros([BQ, BD], ACC)
    for first in range(0, N, BN):
        n = (first + tl.arange(0, BN)).to(tl.int64)
        y = rows_at(y_ptr + t * y_t, n, n < N, begin, D, y_n, y_d, BD, ACC)
        h = tl.load(
            h_ptr + t * h_t + q[:, None] * h_q + n[None, :] * h_n,
            mask=(q < Q)[:, None] & (n < N)[None, :], other=0.0,
        ).to(ACC)  # fmt: skip
        total += tl.sum(h[:, :, None] * (x[:, None, :] - y[None, :, :]), 1)
    d = begin + tl.arange(0, BD)
    out = out_ptr + (t * Q + q[:, None]) * D + d[None, :]
    tl.store(out, total, mask=(q < Q)[:, None] & (d < D)[None, :])


def pull(h: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[q, d] = sum over n of h_qn (x_q - y_n)_d: [T, Q, N], [T, Q, D], [T, N, D] -> [T, Q, D]"""
    tasks, queries, width = x.shape
    prototypes = y.shape[1]
    out = h.new_empty(tasks, queries, width)
    block = pull_block(prototypes, width)
    grid = (tasks * cdiv(queries, block.Q), cdiv(width, block.D))
    pull_kernel[grid](
        h, x, y, out, queries, prototypes, width, *h.stride(), *x.stride(), *y.stride(),
        BQ=block.Q, BN=block.N, BD=block.D, num_warps=block.num_warps,
    )  # fmt: skip
    return out
