"""The backward of `prototype_loss`, in one pass over the queries and weights of pairs.

With g the gradient for the logits, r the distance and c the cosine,

    squared Euclidean   for x_q: sum_n h (x_q - y_n), for y_n: -sum_q h (x_q - y_n), h = -2 g / tau
    Euclidean           the same with h = -g / (tau r), and 0 where r is 0
    dot                 for x_q: sum_n h y_n,  for y_n: sum_q h x_q,  h = g / tau
    cosine              likewise with h = g / (tau |x_q| |y_n|), and less
                        x_q / |x_q|^2 times sum_n g c / tau, or y_n / |y_n|^2 times sum_q g c / tau
"""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.distance_tile import COSINE, EUCLIDEAN, METRICS, SQEUCLIDEAN, rows_at
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.pair_weights import pair_weights
from fastmeta.kernels.prototype import PrototypeLoss
from fastmeta.kernels.prototype_configs import MOST_CLASSES, gradient_block

__all__ = ["MOST_CLASSES", "prototype_gradient"]


@triton.jit
def pair_tile(ptr, t, q, real, n, Q, N):
    """[q, n] of [T, Q, N], with zeros for what is not there."""
    there = real[:, None] & (n < N)[None, :]
    return tl.load(ptr + (t * Q + q[:, None]) * N + n[None, :], mask=there, other=0.0)


@triton.jit
def block_sums(h, along, x, x_factor, y, y_factor, for_y, on_y, METRIC: tl.constexpr):
    """Sums over a block of classes for the queries x, and for_y and on_y with those over x."""
    if METRIC == COSINE:
        on_y -= tl.sum(along, 0)
        h = h * x_factor[:, None] * y_factor[None, :]
    if METRIC == SQEUCLIDEAN or METRIC == EUCLIDEAN:
        pulls = h[:, :, None] * (x[:, None, :] - y[None, :, :])
        for_x = tl.sum(pulls, 1)
        for_y -= tl.sum(pulls, 0)
    else:
        for_x = tl.sum(h[:, :, None] * y[None, :, :], 1)
        for_y += tl.sum(h[:, :, None] * x[:, None, :], 0)
    return for_x, for_y, on_y


@launchable
@triton.jit
def prototype_gradient_kernel(
    query_ptr, means_ptr, h_ptr, weight_ptr, temperature_ptr,
    logits_ptr, query_factor_ptr, mean_factor_ptr, for_query_ptr, for_means_ptr,
    T, Q, N, D, chunk,
    query_t, query_q, query_d, means_t, means_n, means_d, weight_t, weight_q, temperature_t,
    HAS_WEIGHT: tl.constexpr, METRIC: tl.constexpr,
    BQ: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of D and `chunk` queries, over all classes: BN, and BM more if not 0.

    It is one warp whose threads share out D: sums over queries and over classes stay in a thread.
    No load of a step depends on another, so that those of the next steps are under way in it.
    """
    ACC: tl.constexpr = logits_ptr.dtype.element_ty
    t = (tl.program_id(0) % T).to(tl.int64)
    part = (tl.program_id(0) // T).to(tl.int64)
    begin = tl.program_id(1) * BD
    d = begin + tl.arange(0, BD)
    end = tl.minimum((part + 1) * chunk, Q)
    temperature = tl.load(temperature_ptr + t * temperature_t).to(ACC)
    means_ptr += t * means_t
    mean_factor_ptr += t * N

    n = tl.arange(0, BN).to(tl.int64)
    y = rows_at(means_ptr, n, n < N, begin, D, means_n, means_d, BD, ACC)
    y_factor = tl.zeros([BN], ACC)
    for_y = tl.zeros([BN, BD], ACC)
    on_y = tl.zeros([BN], ACC)
    if METRIC == COSINE:
        y_factor = tl.load(mean_factor_ptr + n, mask=n < N, other=0.0)
    if BM > 0:
        m = (BN + tl.arange(0, BM)).to(tl.int64)
        z = rows_at(means_ptr, m, m < N, begin, D, means_n, means_d, BD, ACC)
        z_factor = tl.zeros([BM], ACC)
        for_z = tl.zeros([BM, BD], ACC)
        on_z = tl.zeros([BM], ACC)
        if METRIC == COSINE:
            z_factor = tl.load(mean_factor_ptr + m, mask=m < N, other=0.0)

    for first in tl.range(0, chunk, BQ, num_stages=4):
        q = part * chunk + first + tl.arange(0, BQ)
        real = q < end
        x = rows_at(query_ptr + t * query_t, q, real, begin, D, query_q, query_d, BD, ACC)
        if HAS_WEIGHT:  # no padding, which may hold anything
            weight = tl.load(weight_ptr + t * weight_t + q * weight_q, mask=real, other=0.0)
            x = tl.where((weight > 0)[:, None], x, 0.0)
        x_factor = tl.zeros([BQ], ACC)
        if METRIC == COSINE:
            x_factor = tl.load(query_factor_ptr + t * Q + q, mask=real, other=0.0)

        h = pair_tile(h_ptr, t, q, real, n, Q, N)
        along = h
        if METRIC == COSINE:
            logits = pair_tile(logits_ptr, t, q, real, n, Q, N)
            along = tl.where(h == 0, 0.0, h * (1.0 + temperature * logits))
            on_x = tl.sum(along, 1)
        for_x, for_y, on_y = block_sums(
            h, along, x, x_factor, y, y_factor, for_y, on_y, METRIC
        )  # fmt: skip
        if BM > 0:
            h = pair_tile(h_ptr, t, q, real, m, Q, N)
            along = h
            if METRIC == COSINE:
                logits = pair_tile(logits_ptr, t, q, real, m, Q, N)
                along = tl.where(h == 0, 0.0, h * (1.0 + temperature * logits))
                on_x += tl.sum(along, 1)
            more, for_z, on_z = block_sums(
                h, along, x, x_factor, z, z_factor, for_z, on_z, METRIC
            )  # fmt: skip
            for_x += more

        if METRIC == COSINE:
            for_x -= (x * x_factor[:, None]) * (x_factor * on_x)[:, None]
        if HAS_WEIGHT:
            for_x = tl.where((weight > 0)[:, None], for_x, 0.0)
        out = for_query_ptr + (t * Q + q[:, None]) * D + d[None, :]
        tl.store(out, for_x, mask=real[:, None] & (d < D)[None, :])

    for_means_ptr += (part * T + t) * N * D
    if METRIC == COSINE:
        for_y += (y * y_factor[:, None]) * (y_factor * on_y)[:, None]
    at = n[:, None] * D + d[None, :]
    tl.store(for_means_ptr + at, for_y, mask=(n < N)[:, None] & (d < D)[None, :])
    if BM > 0:
        if METRIC == COSINE:
            for_z += (z * z_factor[:, None]) * (z_factor * on_z)[:, None]
        at = m[:, None] * D + d[None, :]
        tl.store(for_means_ptr + at, for_z, mask=(m < N)[:, None] & (d < D)[None, :])


def prototype_gradient(
    grad_loss: Tensor, query: Tensor, means: Tensor, labels: Tensor, weight: Tensor | None,
    temperature: Tensor, metric: str, found: PrototypeLoss,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for query [T, Q, D], of its dtype, means [T, N, D], and temperature [T, Q].

    From that for the loss [T]; at most `MOST_CLASSES` classes. The gradient for the temperature is
    to be summed over the queries.
    """
    tasks, queries, width = query.shape
    n_way = means.shape[1]
    logits = found.logits
    h, slopes = pair_weights(grad_loss, labels, weight, temperature, metric, found)
    block = gradient_block(tasks, queries, n_way, width)
    chunks = cdiv(queries, block.chunk)
    for_query = query.new_empty(query.shape)
    for_means = logits.new_empty(chunks, tasks, n_way, width)
    given = temperature[:, None] if weight is None else weight
    factors = (logits if f is None else f for f in (found.query_factor, found.mean_factor))
    prototype_gradient_kernel[(tasks * chunks, cdiv(width, block.D))](
        query, means, h, given, temperature, logits, *factors, for_query, for_means,
        tasks, queries, n_way, width, block.chunk,
        *query.stride(), *means.stride(), *given.stride(), *temperature.stride(),
        HAS_WEIGHT=weight is not None, METRIC=METRICS[metric],
        BQ=block.Q, BN=block.N, BM=block.more, BD=block.D, num_warps=1,
    )  # fmt: skip
    # In the order of the chunks, so the same each time.
    return for_query, for_means[0] if chunks == 1 else for_means.sum(0), slopes
