"""What each pair of a query and a class weighs in the gradients of `prototype_loss`.

With g the gradient for the logits, r the distance and tau the temperature: h = -2 g / tau for the
squared Euclidean distance, -g / (tau r) for the Euclidean one, 0 where r is 0, and else g / tau.
The gradients are sums with these weights, over classes for queries and over queries for classes.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.configs import power_of_2
from fastmeta.kernels.distance_tile import EUCLIDEAN, METRICS, SQEUCLIDEAN
from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype import PrototypeLoss

__all__ = ["pair_weights"]

_QUERIES, _MOST_CLASSES = 8, 64  # of a step


@launchable
@triton.jit
def pair_weights_kernel(
    logits_ptr, peak_ptr, total_ptr, labels_ptr, weight_ptr, mass_ptr, temperature_ptr,
    grad_loss_ptr, out_ptr, slopes_ptr, Q, N, labels_t, labels_q, weight_t, weight_q,
    temperature_t, grad_loss_t,
    HAS_WEIGHT: tl.constexpr, METRIC: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program a block of queries, over all classes."""
    ACC: tl.constexpr = logits_ptr.dtype.element_ty
    blocks = tl.cdiv(Q, BQ)
    t = (tl.program_id(0) // blocks).to(tl.int64)
    q = ((tl.program_id(0) % blocks) * BQ + tl.arange(0, BQ)).to(tl.int64)
    inside = q < Q
    real = inside  # and no padding
    share = inside.to(ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + t * weight_t + q * weight_q, mask=inside, other=0.0).to(ACC)
        real = inside & (weight > 0)
        share = tl.where(real, weight, 0.0)
    label = tl.load(labels_ptr + t * labels_t + q * labels_q, mask=real, other=-1)
    peak = tl.load(peak_ptr + t * Q + q, mask=inside, other=0.0)
    total = tl.load(total_ptr + t * Q + q, mask=inside, other=1.0)
    outer = tl.load(grad_loss_ptr + t * grad_loss_t).to(ACC)
    share = share * (outer / tl.load(mass_ptr + t))
    temperature = tl.load(temperature_ptr + t * temperature_t).to(ACC)

    slope = tl.zeros([BQ], ACC)
    for first in range(0, N, BN):
        n = (first + tl.arange(0, BN)).to(tl.int64)
        there = real[:, None] & (n < N)[None, :]
        at = (t * Q + q[:, None]) * N + n[None, :]
        logits = tl.load(logits_ptr + at, mask=there, other=0.0)
        probability = tl.exp(tl.where(there, logits - peak[:, None], float("-inf")))
        probability = probability / total[:, None]
        error = tl.where(n[None, :] == label[:, None], probability - 1.0, probability)
        grad = tl.where(there, error * share[:, None], 0.0)
        slope -= tl.sum(grad * logits, 1)
        h = grad / temperature
        if METRIC == SQEUCLIDEAN:
            h = -2.0 * h
        if METRIC == EUCLIDEAN:
            distance = -logits * temperature
            h = tl.where(distance == 0, 0.0, -h / tl.where(distance == 0, 1.0, distance))
        tl.store(out_ptr + at, h, mask=inside[:, None] & (n < N)[None, :])
    tl.store(slopes_ptr + t * Q + q, slope / temperature, mask=inside)


def pair_weights(
    grad_loss: Tensor, labels: Tensor, weight: Tensor | None, temperature: Tensor, metric: str,
    found: PrototypeLoss,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """From the gradient for the loss [T]: h [T, Q, N], and the gradient for temperature [T, Q].

    Labels and weight [T, Q], temperature [T]. The gradient is to be summed over the queries. A
    query of weight 0 has zeros.
    """
    tasks, queries, n_way = found.logits.shape
    out = found.logits.new_empty(tasks, queries, n_way)
    slopes = found.logits.new_empty(tasks, queries)
    given = labels if weight is None else weight
    pair_weights_kernel[(tasks * cdiv(queries, _QUERIES),)](
        found.logits, found.peak, found.total, labels, given, found.mass, temperature,
        grad_loss, out, slopes, queries, n_way, *labels.stride(), *given.stride(),
        *temperature.stride(), *grad_loss.stride(),
        HAS_WEIGHT=weight is not None, METRIC=METRICS[metric],
        BQ=_QUERIES, BN=min(_MOST_CLASSES, max(8, power_of_2(n_way))), num_warps=2,
    )  # fmt: skip
    return out, slopes
