"""Distances between the samples of each task and its prototypes."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.distance_tile import METRICS, distances
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype_configs import distance_block

__all__ = ["pairwise"]


@launchable
@triton.jit
def pairwise_kernel(
    x_ptr, y_ptr, out_ptr, Q, N, D, x_t, x_q, x_d, y_t, y_n, y_d,
    METRIC: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of samples and of prototypes."""
    blocks = tl.cdiv(Q, BQ)
    blocks_n = tl.cdiv(N, BN)  # in one dimension: another of the grid ends at 65535
    block = tl.program_id(0) // blocks_n
    t = (block // blocks).to(tl.int64)
    q = ((block % blocks) * BQ + tl.arange(0, BQ)).to(tl.int64)
    n = ((tl.program_id(0) % blocks_n) * BN + tl.arange(0, BN)).to(tl.int64)
    distance, _, _ = distances(
        x_ptr + t * x_t, q, q < Q, x_q, x_d, y_ptr + t * y_t, n, n < N, y_n, y_d,
        D, METRIC, BD, out_ptr.dtype.element_ty,
    )  # fmt: skip
    out = out_ptr + (t * Q + q[:, None]) * N + n[None, :]
    tl.store(out, distance, mask=(q < Q)[:, None] & (n < N)[None, :])


def pairwise(x: Tensor, y: Tensor, metric: str, sums: Tensor) -> Tensor:
    """[T, Q, D] and [T, N, D] -> [T, Q, N] of the dtype of `sums`."""
    tasks, queries, width = x.shape
    prototypes = y.shape[1]
    out = sums.new_empty(tasks, queries, prototypes)
    block = distance_block(tasks * queries, prototypes, width)
    grid = (tasks * cdiv(queries, block.Q) * cdiv(prototypes, block.N),)
    pairwise_kernel[grid](
        x, y, out, queries, prototypes, width, *x.stride(), *y.stride(),
        METRIC=METRICS[metric], BQ=block.Q, BN=block.N, BD=block.D, num_warps=block.num_warps,
    )  # fmt: skip
    return out
