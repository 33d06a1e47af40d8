"""The k nearest by exact distances of the few prototypes whose lower bounds are low enough.

A bound above the k-th distance found so far rules its prototype out. A part that kept as many
bounds as it could, none of them above the k-th distance, may have left out one that belongs: it is
marked, and looked through as `nearest` does it. So the result is that of `nearest`, whatever the
bank; what differs is how much is computed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.configs import power_of_2
from fastmeta.kernels.distance_tile import METRICS, distances
from fastmeta.kernels.launch import launchable
from fastmeta.kernels.nearest import keep_lowest, keys_of, merge, nearest_of_parts, nothing_yet
from fastmeta.kernels.nearest_bounds import nearest_bounds
from fastmeta.kernels.prototype_configs import BoundBlock, exact_block

__all__ = ["nearest_by_bounds"]

_LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_SAMPLE = 64  # prototypes whose mean is the centre


@launchable
@triton.jit
def rerank_kernel(
    x_ptr, y_ptr, bounds_ptr, keys_ptr, marks_ptr, Q, D, k, part, parts,
    x_t, x_q, x_d, y_t, y_n, y_d,
    METRIC: tl.constexpr, KEPT: tl.constexpr, K: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a query."""
    row = tl.program_id(0).to(tl.int64)
    q = row % Q + tl.zeros([1], tl.int64)
    x_ptr += row // Q * x_t
    y_ptr += row // Q * y_t
    bounds_ptr += row * parts * KEPT
    lowest = nothing_yet(1, K)
    limit = tl.full([1], _LAST, tl.int64)
    for first in range(0, parts * KEPT, BC):
        c = first + tl.arange(0, BC)
        bound = tl.load(bounds_ptr + c, mask=c < parts * KEPT, other=_LAST)
        candidate = is_filled(bound, KEPT) & (bound >> 32 <= limit >> 32)
        if tl.max(candidate.to(tl.int32), 0) > 0:
            n = bound & 0xFFFFFFFF
            distance, _, _ = distances(
                x_ptr, q, q < Q, x_q, x_d, y_ptr, n, candidate, y_n, y_d,
                D, METRIC, BD, tl.float32,
            )  # fmt: skip
            lowest = keep_lowest(lowest, tl.where(candidate[None, :], keys_of(distance, n), _LAST))
            limit = kth(lowest, k)

    for first in range(0, parts, BP):
        p = first + tl.arange(0, BP)
        marked = may_lack(bounds_ptr, p, p < parts, limit, KEPT)
        tl.store(marks_ptr + row * parts + p, marked.to(tl.int32), mask=p < parts)
    # What is of a part that is looked through again would be there twice.
    p = tl.reshape(lowest & 0xFFFFFFFF, [K]) // part
    again = may_lack(bounds_ptr, p, p < parts, limit, KEPT)
    lowest = tl.where(again[None, :], _LAST, lowest)
    place = tl.arange(0, K)
    tl.store(keys_ptr + (row * (parts + 1) + parts) * K + place[None, :], lowest)


@triton.jit
def is_filled(keys, KEPT: tl.constexpr):
    """Whether a place of a list holds a prototype."""
    return keys < _LAST - KEPT


@triton.jit
def kth(lowest, k):
    """[1]: the k-th lowest of [1, K]."""
    for _ in range(1, k):
        first = tl.min(lowest, 1)
        lowest = tl.where(lowest == first[:, None], _LAST, lowest)
    return tl.min(lowest, 1)


@triton.jit
def may_lack(bounds_ptr, p, there, limit, KEPT: tl.constexpr):
    """Whether each part p had bounds to leave out, and none of those it kept is above the limit."""
    place = tl.arange(0, KEPT)
    kept = tl.load(
        bounds_ptr + p[:, None] * KEPT + place[None, :], mask=there[:, None], other=_LAST
    )  # fmt: skip
    highest = tl.max(kept, 1)
    return is_filled(highest, KEPT) & (highest >> 32 <= limit >> 32)


def nearest_by_bounds(
    x: Tensor, prototypes: Tensor, k: int, metric: str, block: BoundBlock
) -> tuple[Tensor, Tensor]:
    """What `nearest` returns, of "sqeuclidean", "dot" or "unit"; k is at most half of the kept."""
    tasks, queries, width = x.shape
    K = max(2, power_of_2(k))
    centre = centre_of(prototypes)
    bounds = nearest_bounds(x, prototypes, centre, metric, block)
    rows, parts, kept = bounds.shape
    keys = x.new_empty(rows, parts + 1, K, dtype=torch.int64)
    marks = x.new_empty(rows, parts, dtype=torch.int32)
    exact = exact_block(rows, width, block.part)
    rerank_kernel[(rows,)](
        x, prototypes, bounds, keys, marks, queries, width, k, block.part, parts,
        *x.stride(), *prototypes.stride(),
        METRIC=METRICS[metric], KEPT=kept, K=K, BC=512 // exact.D, BP=16, BD=exact.D, num_warps=4,
    )  # fmt: skip
    nearest_of_parts(x, prototypes, metric, keys, marks, exact)
    return merge(keys, tasks, queries, k)


def centre_of(prototypes: Tensor) -> Tensor:
    """[T, D]: the mean of some. Any is right; the nearer to all, the closer are the bounds."""
    step = max(1, prototypes.shape[1] // _SAMPLE)
    some = prototypes[:, : step * _SAMPLE : step]
    return some.nan_to_num(0.0, 0.0, 0.0).mean(1)
