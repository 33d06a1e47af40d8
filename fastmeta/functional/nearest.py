"""The nearest prototypes of a bank."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastmeta.backends.halves import for_sums
from fastmeta.functional.checks import check_samples, count_of
from fastmeta.functional.distances import check_features, check_metric, distance, root, unit
from fastmeta.functional.eager import traced_whole
from fastmeta.functional.prototypes import in_sums, native_for

__all__ = ["nearest_prototype"]

_ELEMENTS = 1 << 22  # of distances that are in memory at a time


@traced_whole
def nearest_prototype(
    x: Tensor, prototypes: Tensor, k: int = 1, metric: str = "sqeuclidean"
) -> tuple[Tensor, Tensor]:
    """Find the k prototypes nearest to each sample, exactly, nearest first.

    Of prototypes at one distance ("euclidean": at one squared distance), the one with the lower
    index comes first. Distances to all prototypes are never in memory together, so that a bank
    may hold millions.

    Args:
        x: [T, Q, D], floating; half precision is summed in float32.
        prototypes: [T, N, D], or [N, D] shared by all tasks.
        k: how many, at most N.
        metric: "sqeuclidean", "euclidean", "cosine" or "dot", as in `pairwise_distance`.

    Returns:
        The distances and the indices, [T, Q, k], int64. The distances are of the dtype of x
        (float32 for half precision) and differentiable to any order. A distance that is NaN
        counts as the largest.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, or more wanted than there are.
        TypeError: dtypes or devices that differ.

    Equivalent to, but for the order of prototypes that are equally far::

        pairwise_distance(x, prototypes, metric).topk(k, largest=False)
    """
    check_metric(metric)
    k = count_of("k", k)
    shared = isinstance(prototypes, Tensor) and prototypes.dim() == 2
    check_samples("x", x, "[T, Q, D]")
    shape = x.shape[:2]
    if shared:
        x, prototypes = x.flatten(0, 1).unsqueeze(0), prototypes.unsqueeze(0)
    prototypes = check_features("x", x, "prototypes", prototypes)
    if k > prototypes.shape[1]:
        raise ValueError(f"k is {k}, and there are {prototypes.shape[1]} prototypes")
    # Roots have the order of the squares, and make some of them equal.
    order = "sqeuclidean" if metric == "euclidean" else metric
    x, prototypes = in_sums(x, prototypes)
    kernels = native_for(x, prototypes, weight=None, features=True)
    if kernels is not None and kernels.can_find(x, prototypes, k) is None:
        values, indices = _native(kernels, x.detach(), prototypes.detach(), k, order)
        if torch.is_grad_enabled() and (x.requires_grad or prototypes.requires_grad):
            values = _distances_to(x, prototypes, indices, order)
    else:
        indices = _nearest(x.detach(), prototypes.detach(), k, order)
        values = _distances_to(x, prototypes, indices, order)
    values = root(values) if metric == "euclidean" else values
    return values.reshape(*shape, k), indices.reshape(*shape, k)


def _native(
    kernels: ModuleType, x: Tensor, prototypes: Tensor, k: int, metric: str
) -> tuple[Tensor, Tensor]:
    if metric == "cosine":
        x, prototypes = unit(for_sums(x)), unit(for_sums(prototypes))
    return kernels.nearest(x, prototypes, k, metric)


def _nearest(x: Tensor, prototypes: Tensor, k: int, metric: str) -> Tensor:
    """The indices [T, Q, k], one block of prototypes after another."""
    block = max(k, _ELEMENTS // max(1, x.shape[0] * x.shape[1]))
    values, indices = x.new_empty(*x.shape[:2], 0), x.new_empty(*x.shape[:2], 0, dtype=torch.int64)
    for begin in range(0, prototypes.shape[1], block):
        some = prototypes[:, begin : begin + block]
        found = distance(x, some, metric)
        at = torch.arange(begin, begin + some.shape[1], device=x.device).expand(found.shape)
        # Those of lower index come first and stay first among equals.
        values, order = torch.cat((values, found), 2).sort(dim=2, stable=True)
        indices = torch.cat((indices, at), 2).gather(2, order)
        values, indices = values[..., :k], indices[..., :k]
    return indices


def _distances_to(x: Tensor, prototypes: Tensor, indices: Tensor, metric: str) -> Tensor:
    """The distances [T, Q, k] to chosen prototypes."""
    tasks, queries, k = indices.shape
    rows = indices.flatten(1).unsqueeze(2).expand(tasks, queries * k, x.shape[2])
    chosen = prototypes.gather(1, rows).unflatten(1, (queries, k)).flatten(0, 1)
    x = for_sums(x.flatten(0, 1).unsqueeze(1))
    return distance(x, for_sums(chosen), metric).reshape(indices.shape)
