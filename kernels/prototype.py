"""The loss of prototypical networks: Snell et al. 2017, equation 2, in one pass over the queries.

Distances, logits, log-softmax, loss and accuracy of a block of queries stay in registers; nothing
of size Q x N x D is in memory. The mean over queries is taken in a fixed order by `task_mean`.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.distance_tile import COSINE, METRICS, distances
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype_configs import distance_block
from fastmeta.kernels.task_mean import task_mean

__all__ = ["PrototypeLoss", "prototype_loss"]


class PrototypeLoss(NamedTuple):
    """What the forward finds, and what of it the backward needs."""

    loss: Tensor  # [T]
    accuracy: Tensor  # [T]
    logits: Tensor  # [T, Q, N]
    peak: Tensor  # [T, Q], the largest logit
    total: Tensor  # [T, Q], the sum of exp(logits - peak)
    mass: Tensor  # [T], sums of weights
    query_factor: Tensor | None  # [T, Q], 1 / |query|, for cosine
    mean_factor: Tensor | None  # [T, N]


@launchable
@triton.jit
def prototype_kernel(
    query_ptr, means_ptr, labels_ptr, weight_ptr, temperature_ptr,
    logits_ptr, peak_ptr, total_ptr, loss_ptr, correct_ptr, query_factor_ptr, mean_factor_ptr,
    Q, N, D, query_t, query_q, query_d, means_t, means_n, means_d,
    labels_t, labels_q, weight_t, weight_q, temperature_t,
    HAS_WEIGHT: tl.constexpr, METRIC: tl.constexpr,
    BQ: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of queries, over all prototypes."""
    ACC: tl.constexpr = logits_ptr.dtype.element_ty
    blocks = tl.cdiv(Q, BQ)
    t = (tl.program_id(0) // blocks).to(tl.int64)
    q = ((tl.program_id(0) % blocks) * BQ + tl.arange(0, BQ)).to(tl.int64)
    real = q < Q  # and no padding, which may hold anything
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + t * weight_t + q * weight_q, mask=real, other=0.0)
        real = real & (weight > 0)
    label = tl.load(labels_ptr + t * labels_t + q * labels_q, mask=real, other=-1)
    temperature = tl.load(temperature_ptr + t * temperature_t).to(ACC)

    largest = tl.full([BQ], float("-inf"), ACC)
    total = tl.zeros([BQ], ACC)  # of exp(logits - largest)
    best = tl.zeros([BQ], tl.int64)
    chosen = tl.full([BQ], float("nan"), ACC)  # stays so for a label outside [0, N)
    for first in range(0, N, BN):
        n = (first + tl.arange(0, BN)).to(tl.int64)
        distance, query_factor, mean_factor = distances(
            query_ptr + t * query_t, q, real, query_q, query_d,
            means_ptr + t * means_t, n, n < N, means_n, means_d, D, METRIC, BD, ACC,
        )  # fmt: skip
        logits = -distance / temperature
        inside = (q < Q)[:, None] & (n < N)[None, :]
        tl.store(logits_ptr + (t * Q + q[:, None]) * N + n[None, :], logits, mask=inside)
        if METRIC == COSINE:
            tl.store(query_factor_ptr + t * Q + q, query_factor, mask=q < Q)
            tl.store(mean_factor_ptr + t * N + n, mean_factor, mask=n < N)

        logits = tl.where((n < N)[None, :], logits, float("-inf"))
        of_block = tl.max(logits, 1)
        # Of equals the lowest index: blocks come in order.
        place = tl.min(tl.where(logits == of_block[:, None], n[None, :], N), 1)
        best = tl.where(of_block > largest, place, best)
        new_largest = tl.maximum(largest, of_block)
        safe = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp(largest - safe) + tl.sum(tl.exp(logits - safe[:, None]), 1)
        largest = new_largest
        is_label = n[None, :] == label[:, None]
        at_label = tl.sum(tl.where(is_label, logits, 0.0), 1)
        chosen = tl.where((label >= first) & (label < first + BN) & (label < N), at_label, chosen)

    at = t * Q + q
    tl.store(peak_ptr + at, largest, mask=q < Q)
    tl.store(total_ptr + at, total, mask=q < Q)
    loss = tl.log(total) + (largest - chosen)  # logits far from 0 lose nothing to their sum
    tl.store(loss_ptr + at, tl.where(real, loss, 0.0), mask=q < Q)
    tl.store(correct_ptr + at, (real & (best == label)).to(ACC), mask=q < Q)


def prototype_loss(
    query: Tensor, means: Tensor, labels: Tensor, weight: Tensor | None, temperature: Tensor,
    metric: str, sums: Tensor,
) -> PrototypeLoss:  # fmt: skip
    """Queries [T, Q, D], means [T, N, D], labels and weight [T, Q], temperature [T].

    In the dtype of `sums`. A query of weight 0 counts as a vector of zeros and adds nothing; a
    label outside [0, N) makes the loss NaN and reads nothing.
    """
    tasks, queries, width = query.shape
    n_way = means.shape[1]
    logits = sums.new_empty(tasks, queries, n_way)
    peak, total, losses, correct = (sums.new_empty(tasks, queries) for _ in range(4))
    factors: tuple[Tensor | None, Tensor | None] = (None, None)
    if metric == "cosine":
        factors = sums.new_empty(tasks, queries), sums.new_empty(tasks, n_way)
    given = labels if weight is None else weight
    block = distance_block(tasks * queries, n_way, width)
    prototype_kernel[(tasks * cdiv(queries, block.Q),)](
        query, means, labels, given, temperature, logits, peak, total, losses, correct,
        *(logits if f is None else f for f in factors), queries, n_way, width,
        *query.stride(), *means.stride(), *labels.stride(), *given.stride(), *temperature.stride(),
        HAS_WEIGHT=weight is not None, METRIC=METRICS[metric],
        BQ=block.Q, BN=block.N, BD=block.D, num_warps=block.num_warps,
    )  # fmt: skip
    loss, accuracy, mass = task_mean(losses, correct, weight)
    return PrototypeLoss(loss, accuracy, logits, peak, total, mass, *factors)
