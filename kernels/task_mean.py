"""Means over the samples of each task, weighted, in an order that is always the same."""

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.launch import launchable

__all__ = ["task_mean"]

_BLOCK = 256


@launchable
@triton.jit
def task_mean_kernel(
    a_ptr, b_ptr, weight_ptr, a_mean_ptr, b_mean_ptr, mass_ptr, S, weight_t, weight_s,
    HAS_WEIGHT: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """A program a task."""
    ACC: tl.constexpr = a_ptr.dtype.element_ty
    t = tl.program_id(0).to(tl.int64)
    a = tl.zeros([BS], ACC)
    b = tl.zeros([BS], ACC)
    mass = tl.zeros([BS], ACC)
    for begin in range(0, S, BS):
        s = (begin + tl.arange(0, BS)).to(tl.int64)
        weight = (s < S).to(ACC)
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + t * weight_t + s * weight_s, mask=s < S, other=0.0)
            weight = weight.to(ACC)
        a += weight * tl.load(a_ptr + t * S + s, mask=s < S, other=0.0)
        b += weight * tl.load(b_ptr + t * S + s, mask=s < S, other=0.0)
        mass += weight
    whole = tl.sum(mass, 0)
    tl.store(a_mean_ptr + t, tl.sum(a, 0) / whole)
    tl.store(b_mean_ptr + t, tl.sum(b, 0) / whole)
    tl.store(mass_ptr + t, whole)


def task_mean(a: Tensor, b: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Two times [T, S], contiguous, and weights or None -> their means and the weights' sums [T]"""
    tasks, samples = a.shape
    a_mean, b_mean, mass = (a.new_empty(tasks) for _ in range(3))
    given = a if weight is None else weight
    task_mean_kernel[(tasks,)](
        a, b, given, a_mean, b_mean, mass, samples, *given.stride(),
        HAS_WEIGHT=weight is not None, BS=_BLOCK, num_warps=4,
    )  # fmt: skip
    return a_mean, b_mean, mass
