"""The gradient of the mean cross-entropy for logits, inside a kernel: no kernel itself."""

import triton
import triton.language as tl

__all__ = ["logit_gradients"]


@triton.jit
def logit_gradients(
    logits_ptr, peak_ptr, total_ptr, labels_ptr, weight_ptr, mass_ptr, grad_loss_ptr,
    grad_logits_ptr, t, q, inside, Q, N, labels_t, labels_q, weight_t, weight_q,
    grad_loss_t, grad_logits_t, grad_logits_q, grad_logits_n,
    HAS_WEIGHT: tl.constexpr, HAS_LOSS: tl.constexpr, HAS_LOGITS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Of the outer loss for logits [BQ, BN], the logits, and which queries are no padding."""
    ACC: tl.constexpr = logits_ptr.dtype.element_ty
    n = tl.arange(0, BN).to(tl.int64)
    there = inside[:, None] & (n < N)[None, :]
    real = inside
    share = inside.to(ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + t * weight_t + q * weight_q, mask=inside, other=0.0).to(ACC)
        real = inside & (weight > 0)
        share = tl.where(real, weight, 0.0)
    logits = tl.load(logits_ptr + (t * Q + q[:, None]) * N + n[None, :], mask=there, other=0.0)
    grad = tl.zeros_like(logits)
    if HAS_LOSS:
        label = tl.load(labels_ptr + t * labels_t + q * labels_q, mask=real, other=-1)
        peak = tl.load(peak_ptr + t * Q + q, mask=inside, other=0.0)
        total = tl.load(total_ptr + t * Q + q, mask=inside, other=1.0)
        outer = tl.load(grad_loss_ptr + t * grad_loss_t).to(ACC)
        share = share * (outer / tl.load(mass_ptr + t))
        probability = tl.exp(tl.where(there, logits - peak[:, None], float("-inf")))
        probability = probability / total[:, None]
        error = tl.where(n[None, :] == label[:, None], probability - 1.0, probability)
        grad = tl.where(there & real[:, None], error * share[:, None], 0.0)
    if HAS_LOGITS:
        offsets = t * grad_logits_t + q[:, None] * grad_logits_q + n[None, :] * grad_logits_n
        grad += tl.load(grad_logits_ptr + offsets, mask=there, other=0.0).to(ACC)
    return grad, logits, real
