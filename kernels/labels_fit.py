"""Whether labels and weights are as they must be, on the card: one number a task."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.launch import launchable

__all__ = ["misfits"]

_BLOCK = 256


@launchable
@triton.jit
def misfits_kernel(
    labels_ptr, weight_ptr, mass_ptr, out_ptr, S, N, labels_t, labels_s, weight_t, weight_s,
    HAS_WEIGHT: tl.constexpr, HAS_MASS: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """A program a task."""
    t = tl.program_id(0).to(tl.int64)
    wrong = tl.zeros([BS], tl.int32)
    heaviest = tl.zeros([BS], tl.float32)
    for begin in range(0, S, BS):
        s = (begin + tl.arange(0, BS)).to(tl.int64)
        label = tl.load(labels_ptr + t * labels_t + s * labels_s, mask=s < S, other=0)
        outside = (label < 0) | (label >= N)
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + t * weight_t + s * weight_s, mask=s < S, other=0.0)
            fits = (weight >= 0) & (weight < float("inf"))
            outside = (outside & (weight > 0)) | (fits == 0)
            heaviest = tl.maximum(heaviest, (weight > 0).to(tl.float32))
        wrong += outside.to(tl.int32)
    total = tl.sum(wrong, 0)
    if HAS_WEIGHT:
        total += (tl.max(heaviest, 0) == 0).to(tl.int32)
    if HAS_MASS:
        for begin in range(0, N, BS):
            n = (begin + tl.arange(0, BS)).to(tl.int64)
            mass = tl.load(mass_ptr + t * N + n, mask=n < N, other=1.0)
            total += tl.sum((mass == 0).to(tl.int32), 0)
    tl.store(out_ptr + t, total)


def misfits(labels: Tensor, weight: Tensor | None, n_way: int, mass: Tensor | None) -> Tensor:
    """[T], int32: how much is wrong with labels and weights [T, S], and with classes of no mass.

    A label outside [0, N) of a sample of weight above 0, a weight that is negative or not finite,
    weights that are all 0, and, given mass [T, N], a class that has none.
    """
    tasks, samples = labels.shape
    out = labels.new_empty(tasks, dtype=torch.int32)
    given = labels if weight is None else weight
    misfits_kernel[(tasks,)](
        labels, given, out if mass is None else mass, out, samples, n_way,
        *labels.stride(), *given.stride(), HAS_WEIGHT=weight is not None,
        HAS_MASS=mass is not None, BS=_BLOCK, num_warps=4,
    )  # fmt: skip
    return out
