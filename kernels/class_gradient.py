"""The gradient of `class_means` for the features: each sample gets its share of its class's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.launch import cdiv, launchable
from fastmeta.kernels.prototype_configs import sum_block

__all__ = ["class_gradient"]


@launchable
@triton.jit
def class_gradient_kernel(
    grad_ptr, labels_ptr, weight_ptr, mass_ptr, out_ptr, S, D, N,
    grad_t, grad_n, grad_d, labels_t, labels_s, weight_t, weight_s, mass_t, mass_n,
    HAS_WEIGHT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A program a block of samples and of D."""
    ACC: tl.constexpr = grad_ptr.dtype.element_ty
    blocks = tl.cdiv(S, BS)
    t = (tl.program_id(0) // blocks).to(tl.int64)
    s = ((tl.program_id(0) % blocks) * BS + tl.arange(0, BS)).to(tl.int64)
    d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(tl.int64)
    label = tl.load(labels_ptr + t * labels_t + s * labels_s, mask=s < S, other=-1)
    member = (label >= 0) & (label < N)
    share = member.to(ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + t * weight_t + s * weight_s, mask=s < S, other=0.0).to(ACC)
        member = member & (weight > 0)
        share = tl.where(member, weight, 0.0)
    mass = tl.load(mass_ptr + t * mass_t + label * mass_n, mask=member, other=1.0)
    grad = tl.load(
        grad_ptr + t * grad_t + label[:, None] * grad_n + d[None, :] * grad_d,
        mask=member[:, None] & (d < D)[None, :], other=0.0,
    )  # fmt: skip
    out = out_ptr + t * S * D + s[:, None] * D + d[None, :]
    tl.store(out, (share / mass)[:, None] * grad, mask=(s < S)[:, None] & (d < D)[None, :])


def class_gradient(
    grad: Tensor, labels: Tensor, weight: Tensor | None, mass: Tensor, dtype: torch.dtype
) -> Tensor:
    """[T, N, D], labels and weight [T, S], mass [T, N] -> [T, S, D], rounded once to `dtype`.

    0 for a sample of weight 0 or with a label outside [0, N).
    """
    tasks, n_way, width = grad.shape
    samples = labels.shape[1]
    out = grad.new_empty(tasks, samples, width, dtype=dtype)
    given = labels if weight is None else weight
    block = sum_block(samples, width)
    grid = (tasks * cdiv(samples, block.S), cdiv(width, block.D))
    class_gradient_kernel[grid](
        grad, labels, given, mass, out, samples, width, n_way,
        *grad.stride(), *labels.stride(), *given.stride(), *mass.stride(),
        HAS_WEIGHT=weight is not None, BS=block.S, BD=block.D, num_warps=block.num_warps,
    )  # fmt: skip
    return out
