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
    labels_ptr, weight_ptr, mass_ptr, more_labels_ptr, more_weight_ptr, out_ptr, T, S, more_S, N,
    labels_t, labels_s, weight_t, weight_s, more_labels_t, more_labels_s, more_weight_t,
    more_weight_s, HAS_WEIGHT: tl.constexpr, HAS_MASS: tl.constexpr,
    HAS_MORE_WEIGHT: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """A program a task, first all of `labels`, then all of `more_labels`."""
    t = (tl.program_id(0) % T).to(tl.int64)
    if tl.program_id(0) < T:
        total = wrong_of(
            labels_ptr + t * labels_t, weight_ptr + t * weight_t, S, N, labels_s, weight_s,
            HAS_WEIGHT, BS,
        )  # fmt: skip
        if HAS_MASS:
            for begin in range(0, N, BS):
                n = (begin + tl.arange(0, BS)).to(tl.int64)
                mass = tl.load(mass_ptr + t * N + n, mask=n < N, other=1.0)
                total += tl.sum((mass == 0).to(tl.int32), 0)
        tl.store(out_ptr + t, total)
    else:
        total = wrong_of(
            more_labels_ptr + t * more_labels_t, more_weight_ptr + t * more_weight_t, more_S, N,
            more_labels_s, more_weight_s, HAS_MORE_WEIGHT, BS,
        )  # fmt: skip
        tl.store(out_ptr + T + t, total)


@triton.jit
def wrong_of(
    labels_ptr, weight_ptr, S, N, labels_s, weight_s, HAS_WEIGHT: tl.constexpr, BS: tl.constexpr
):  # fmt: skip
    """Of one task."""
    wrong = tl.zeros([BS], tl.int32)
    heaviest = tl.zeros([BS], tl.float32)
    for begin in range(0, S, BS):
        s = (begin + tl.arange(0, BS)).to(tl.int64)
        label = tl.load(labels_ptr + s * labels_s, mask=s < S, other=0)
        outside = (label < 0) | (label >= N)
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + s * weight_s, mask=s < S, other=0.0)
            fits = (weight >= 0) & (weight < float("inf"))
            outside = (outside & (weight > 0)) | (fits == 0)
            heaviest = tl.maximum(heaviest, (weight > 0).to(tl.float32))
        wrong += outside.to(tl.int32)
    total = tl.sum(wrong, 0)
    if HAS_WEIGHT:
        total += (tl.max(heaviest, 0) == 0).to(tl.int32)
    return total


def misfits(
    labels: Tensor, weight: Tensor | None, n_way: int, mass: Tensor | None,
    more_labels: Tensor | None = None, more_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[T], int32: how much is wrong with labels and weights [T, S], and with classes of no mass.

    A label outside [0, N) of a sample of weight above 0, a weight that is negative or not finite,
    weights that are all 0, and, given mass [T, N], a class that has none. With more labels [T, Q],
    and weights or None, it is [2 T]: theirs come last.
    """
    tasks, samples = labels.shape
    both = more_labels is not None
    out = labels.new_empty(2 * tasks if both else tasks, dtype=torch.int32)
    given = labels if weight is None else weight
    more = more_labels if both else labels
    more_given = more if more_weight is None else more_weight
    misfits_kernel[(len(out),)](
        labels, given, out if mass is None else mass, more, more_given, out,
        tasks, samples, more.shape[1], n_way,
        *labels.stride(), *given.stride(), *more.stride(), *more_given.stride(),
        HAS_WEIGHT=weight is not None, HAS_MASS=mass is not None,
        HAS_MORE_WEIGHT=more_weight is not None, BS=_BLOCK, num_warps=4,
    )  # fmt: skip
    return out
