"""The k nearest of a bank of prototypes, block by block: distances to all are never in memory.

A distance and its index are one whole number of 64 bits that orders as the pair does: by distance,
NaN last, then by index. So the k lowest numbers are the answer, whatever the order in which the
blocks are looked at, and of equals the lowest index comes first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.configs import power_of_2
from fastmeta.kernels.distance_tile import METRICS, distances
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype_configs import NearestBlock, nearest_block

__all__ = ["MOST", "merge", "nearest", "nearest_of_parts"]

MOST = 64  # nearest that fit into registers
_LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def keys_of(distance, n):
    """Distances [Q, N] in float32 and indices [N] below 2^32 as whole numbers [Q, N]."""
    bits = (distance + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = tl.where(distance == distance, ordered, 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | n[None, :]


@triton.jit
def distances_of(keys):
    """The distances that `keys_of` was given, but for the sign of 0."""
    ordered = (keys >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def keep_lowest(lowest, keys):
    """The lowest [Q, K] of `lowest`, in no order, and `keys` [Q, N], all different."""
    candidate = tl.min(keys, 1)
    worst = tl.max(lowest, 1)
    while tl.max((candidate < worst).to(tl.int32), 0) > 0:
        better = (candidate < worst)[:, None] & (lowest == worst[:, None])
        lowest = tl.where(better, candidate[:, None], lowest)
        keys = tl.where(keys == candidate[:, None], _LAST, keys)
        candidate = tl.min(keys, 1)
        worst = tl.max(lowest, 1)
    return lowest


@triton.jit
def nothing_yet(BQ: tl.constexpr, K: tl.constexpr):
    """[Q, K] keys behind all others, each of its own."""
    places = tl.arange(0, K).to(tl.int64) + tl.zeros([BQ, K], tl.int64)
    return _LAST - 1 - places


@launchable
@triton.jit
def nearest_kernel(
    x_ptr, y_ptr, keys_ptr, marks_ptr, Q, N, D, part, lists, x_t, x_q, x_d, y_t, y_n, y_d,
    METRIC: tl.constexpr, K: tl.constexpr, HAS_MARKS: tl.constexpr,
    BQ: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of samples and `part` prototypes, a multiple of BN.

    Of marks [T * Q, parts], those that are 0 leave a list without prototypes.
    """
    blocks = tl.cdiv(Q, BQ)
    t = (tl.program_id(0) // blocks).to(tl.int64)
    q = ((tl.program_id(0) % blocks) * BQ + tl.arange(0, BQ)).to(tl.int64)
    begin = tl.program_id(1).to(tl.int64) * part
    row = t * Q + q
    lowest = nothing_yet(BQ, K)
    length = part
    if HAS_MARKS:
        marks = tl.load(
            marks_ptr + row * tl.num_programs(1) + tl.program_id(1), mask=q < Q, other=0
        )
        length = part * tl.max(marks, 0)
    for first in range(0, length, BN):
        n = begin + first + tl.arange(0, BN)
        distance, _, _ = distances(
            x_ptr + t * x_t, q, q < Q, x_q, x_d, y_ptr + t * y_t, n, n < N, y_n, y_d,
            D, METRIC, BD, tl.float32,
        )  # fmt: skip
        keys = tl.where((n < N)[None, :], keys_of(distance, n), _LAST)
        lowest = keep_lowest(lowest, keys)
    if HAS_MARKS:
        lowest = tl.where((marks > 0)[:, None], lowest, _LAST)
    place = tl.arange(0, K)
    out = keys_ptr + (row[:, None] * lists + tl.program_id(1)) * K
    tl.store(out + place[None, :], lowest, mask=(q < Q)[:, None] & (place >= 0)[None, :])


@launchable
@triton.jit
def merge_kernel(
    keys_ptr, values_ptr, indices_ptr, rows, candidates, k,
    K: tl.constexpr, BQ: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of candidates [rows, candidates] the k lowest in order. A program a few rows."""
    row = (tl.program_id(0) * BQ + tl.arange(0, BQ)).to(tl.int64)
    lowest = nothing_yet(BQ, K)
    for first in range(0, candidates, BC):
        c = first + tl.arange(0, BC)
        there = (row < rows)[:, None] & (c < candidates)[None, :]
        keys = tl.load(keys_ptr + row[:, None] * candidates + c[None, :], mask=there, other=_LAST)
        # What no program filled in is there many times over.
        keys = tl.where(keys >= _LAST - K, _LAST, keys)
        lowest = keep_lowest(lowest, keys)
    for place in range(0, k):
        first_of = tl.min(lowest, 1)
        tl.store(values_ptr + row * k + place, distances_of(first_of), mask=row < rows)
        tl.store(indices_ptr + row * k + place, first_of & 0xFFFFFFFF, mask=row < rows)
        lowest = tl.where(lowest == first_of[:, None], _LAST, lowest)


def nearest(x: Tensor, prototypes: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """The k least distances [T, Q, k], float32, of [T, Q, D] to [T, N, D], and their indices.

    k is at most `MOST` and N, and N below 2^31.
    """
    tasks, queries, width = x.shape
    bank = prototypes.shape[1]
    block = nearest_block(tasks * queries, bank, width)
    parts = cdiv(bank, block.part)
    keys = x.new_empty(tasks * queries, parts, max(2, power_of_2(k)), dtype=torch.int64)
    nearest_of_parts(x, prototypes, metric, keys, None, block)
    return merge(keys, tasks, queries, k)


def nearest_of_parts(
    x: Tensor, prototypes: Tensor, metric: str, keys: Tensor, marks: Tensor | None,
    block: NearestBlock,
) -> None:  # fmt: skip
    """Write the lowest keys of each part, or of those that have a mark for a query.

    keys [T * Q, lists, K], of which the lists behind the parts are left as they are; marks
    [T * Q, parts].
    """
    tasks, queries, width = x.shape
    bank = prototypes.shape[1]
    grid = (tasks * cdiv(queries, block.Q), cdiv(bank, block.part))
    nearest_kernel[grid](
        x, prototypes, keys, keys if marks is None else marks, queries, bank, width, block.part,
        keys.shape[1], *x.stride(), *prototypes.stride(),
        METRIC=METRICS[metric], K=keys.shape[2], HAS_MARKS=marks is not None,
        BQ=block.Q, BN=block.N, BD=block.D, num_warps=4,
    )  # fmt: skip


def merge(keys: Tensor, tasks: int, queries: int, k: int) -> tuple[Tensor, Tensor]:
    """Of keys [T * Q, lists, K] the k lowest: distances [T, Q, k] and indices."""
    values = keys.new_empty(tasks, queries, k, dtype=torch.float32)
    indices = keys.new_empty(tasks, queries, k)
    rows = 4
    total, lists, K = keys.shape
    merge_kernel[(cdiv(total, rows),)](
        keys, values, indices, total, lists * K, k, K=K, BQ=rows, BC=128, num_warps=4,
    )  # fmt: skip
    return values, indices
