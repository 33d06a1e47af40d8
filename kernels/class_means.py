"""The mean of each class of each task: Snell et al. 2017, equation 1."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype_configs import mean_block

__all__ = ["class_means"]


@launchable
@triton.jit
def class_means_kernel(
    x_ptr, labels_ptr, weight_ptr, means_ptr, mass_ptr, S, D, N,
    x_t, x_s, x_d, labels_t, labels_s, weight_t, weight_s,
    HAS_WEIGHT: tl.constexpr, BS: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a class and block of D: one warp, in whose threads sums over samples stay.

    It finds the samples of its class first, so that it neither reads nor passes by any other's row
    and has the reads of `BG` rows under way at once.
    """
    ACC: tl.constexpr = means_ptr.dtype.element_ty
    t = (tl.program_id(0) // N).to(tl.int64)
    n = tl.program_id(0) % N
    d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(tl.int64)
    x_ptr += t * x_t
    labels_ptr += t * labels_t
    weight_ptr += t * weight_t

    # Sums of differences to the class' first sample: those of features with a large common offset,
    # or with one sample far from the others, would lose it in rounding.
    first = tl.full([], S, tl.int32)
    for begin in range(0, S, BS):
        s = begin + tl.arange(0, BS)
        member = tl.load(labels_ptr + s.to(tl.int64) * labels_s, mask=s < S, other=-1) == n
        if HAS_WEIGHT:
            member = member & (
                tl.load(weight_ptr + s.to(tl.int64) * weight_s, mask=s < S, other=0.0) > 0
            )
        first = tl.minimum(first, tl.min(tl.where(member, s, S), 0))
    origin = tl.load(
        x_ptr + first.to(tl.int64) * x_s + d * x_d, mask=(d < D) & (first < S), other=0.0
    ).to(ACC)

    total = tl.zeros([BD], ACC)
    mass = tl.zeros([BS], ACC)
    for begin in range(0, S, BS):
        s = begin + tl.arange(0, BS)
        label = tl.load(labels_ptr + s.to(tl.int64) * labels_s, mask=s < S, other=-1)
        share = (label == n).to(ACC)
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + s.to(tl.int64) * weight_s, mask=s < S, other=0.0).to(ACC)
            share = tl.where((label == n) & (weight > 0), weight, 0.0)
        mass += share
        member = share > 0
        rank = tl.where(member, tl.cumsum(member.to(tl.int32), 0) - 1, -1)
        for begin_row in range(0, tl.max(rank, 0) + 1, BG):
            is_next = rank[None, :] == begin_row + tl.arange(0, BG)[:, None]
            row = tl.max(tl.where(is_next, s[None, :], -1), 1)
            there = row >= 0
            x = tl.load(
                x_ptr + row.to(tl.int64)[:, None] * x_s + d[None, :] * x_d,
                mask=there[:, None] & (d < D)[None, :], other=0.0,
            ).to(ACC)  # fmt: skip
            difference = tl.where(there[:, None], x - origin[None, :], 0.0)
            if HAS_WEIGHT:
                of_row = tl.sum(tl.where(is_next, share[None, :], 0.0), 1)
                difference = of_row[:, None] * difference
            total += tl.sum(difference, 0)
    whole = tl.sum(mass, 0)
    at = t * N + n
    tl.store(means_ptr + at * D + d, origin + total / whole, mask=d < D)
    if tl.program_id(1) == 0:
        tl.store(mass_ptr + at, whole)


def class_means(
    x: Tensor, labels: Tensor, weight: Tensor | None, n_way: int, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """[T, S, D], [T, S] and [T, S] or None -> the means [T, N, D] and sums of weights [T, N].

    In the dtype of `sums`, any tensor in the precision of sums. A class without a sample of
    weight above 0 has mean NaN and sum 0; a label outside [0, N) belongs to no class.
    """
    tasks, samples, width = x.shape
    means, mass = sums.new_empty(tasks, n_way, width), sums.new_empty(tasks, n_way)
    given = labels if weight is None else weight
    block = mean_block(samples, width)
    grid = (tasks * n_way, cdiv(width, block.D))
    class_means_kernel[grid](
        x, labels, given, means, mass, samples, width, n_way,
        *x.stride(), *labels.stride(), *given.stride(),
        HAS_WEIGHT=weight is not None, BS=block.S, BG=block.rows, BD=block.D, num_warps=1,
    )  # fmt: skip
    return means, mass
