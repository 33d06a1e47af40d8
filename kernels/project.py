"""Products with differences: the other half of the derivatives of squared distances."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.distance_tile import rows_at
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype_configs import distance_block

__all__ = ["project"]


@launchable
@triton.jit
def project_kernel(
    a_ptr, x_ptr, y_ptr, out_ptr, Q, N, D, a_t, a_q, a_d, x_t, x_q, x_d, y_t, y_n, y_d,
    BQ: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of samples and of prototypes."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    blocks = tl.cdiv(Q, BQ)
    blocks_n = tl.cdiv(N, BN)  # in one dimension: another of the grid ends at 65535
    block = tl.program_id(0) // blocks_n
    t = (block // blocks).to(tl.int64)
    q = ((block % blocks) * BQ + tl.arange(0, BQ)).to(tl.int64)
    n = ((tl.program_id(0) % blocks_n) * BN + tl.arange(0, BN)).to(tl.int64)
    sums = tl.zeros([BQ, BN, BD], ACC)
    for begin in range(0, D, BD):
        a = rows_at(a_ptr + t * a_t, q, q < Q, begin, D, a_q, a_d, BD, ACC)
        x = rows_at(x_ptr + t * x_t, q, q < Q, begin, D, x_q, x_d, BD, ACC)
        y = rows_at(y_ptr + t * y_t, n, n < N, begin, D, y_n, y_d, BD, ACC)
        sums += a[:, None, :] * (x[:, None, :] - y[None, :, :])
    out = out_ptr + (t * Q + q[:, None]) * N + n[None, :]
    tl.store(out, tl.sum(sums, 2), mask=(q < Q)[:, None] & (n < N)[None, :])


def project(a: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[q, n] = a_q . (x_q - y_n): [T, Q, D], [T, Q, D], [T, N, D] -> [T, Q, N]"""
    tasks, queries, width = x.shape
    prototypes = y.shape[1]
    out = a.new_empty(tasks, queries, prototypes)
    block = distance_block(tasks * queries, prototypes, width)
    grid = (tasks * cdiv(queries, block.Q) * cdiv(prototypes, block.N),)
    project_kernel[grid](
        a, x, y, out, queries, prototypes, width, *a.stride(), *x.stride(), *y.stride(),
        BQ=block.Q, BN=block.N, BD=block.D, num_warps=block.num_warps,
    )  # fmt: skip
    return out
