"""Prototypes: the mean of each class of each task."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastmeta.backends.halves import for_sums, is_half
from fastmeta.backends.operation import operation
from fastmeta.backends.prototype_kernels import kernels_for
from fastmeta.functional.checks import check_samples, count_of
from fastmeta.functional.eager import Function, traced_whole
from fastmeta.functional.labels import (
    check_labels,
    check_ways,
    check_weight,
    labels_in_range,
    without_padding,
)
from fastmeta.functional.transforms import nobody_transforms

__all__ = ["class_means", "in_sums", "native_for", "prototypes", "refuse_labels"]


@traced_whole
def prototypes(
    features: Tensor, labels: Tensor, n_way: int, weight: Tensor | None = None
) -> Tensor:
    """Average the features of each class of each task: Snell et al. 2017, equation 1.

    Args:
        features: [T, S, D], floating; half precision is summed in float32.
        labels: [T, S], int64, in [0, n_way), in any order and any number a class.
        n_way: N, the number of classes.
        weight: [T, S], finite and not negative; the mean becomes sum(weight * x) / sum(weight).
            A sample of weight 0 is padding, and may hold anything.

    Returns:
        [T, N, D], of the dtype of the features (float32 for half precision), differentiable to
        any order in features and weight.

    Raises:
        ValueError: shapes that do not fit, a label outside [0, n_way), a class without a sample
            of weight above 0, a weight that is negative or not finite.
        TypeError: dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([torch.stack([features[t][labels[t] == n].mean(0) for n in range(n_way)])
                     for t in range(T)])
    """
    check_samples("features", features, "[T, S, D]")
    check_labels("labels", labels, "features", features)
    n_way = count_of("n_way", n_way)
    check_ways(n_way, "features", features)
    if weight is not None:
        check_weight("weight", weight, "features", features)
        weight = for_sums(weight)
    x = for_sums(features)
    kernels = native_for(x, weight=weight)
    if kernels is not None:
        return _Means.apply(x, labels, n_way, weight, kernels)
    labels = labels_in_range("labels", labels, weight, n_way, every_class=True)
    return class_means(without_padding(x, weight), labels, n_way, weight)


def native_for(
    *tensors: Tensor, weight: Tensor | None, features: bool = False
) -> ModuleType | None:
    """The kernels that do it, if any: of plain tensors, and without a gradient for the weights.

    features: tensors may be half precision, which the kernels convert on loading.
    """
    if not nobody_transforms() or (weight is not None and weight.requires_grad):
        return None
    return kernels_for(*tensors, features=features)


def in_sums(*features: Tensor) -> tuple[Tensor, ...]:
    """float32 for half precision, unless the kernels take it as it is."""
    if not any(map(is_half, features)):
        return features
    loaded = nobody_transforms() and kernels_for(*features, features=True) is not None
    return features if loaded else tuple(map(for_sums, features))


def refuse_labels(name: str, labels: Tensor, weight: Tensor | None, n_way: int) -> NoReturn:
    """ValueError that says what of the labels and weights of prototypes is wrong."""
    labels_in_range(name, labels, weight, n_way, every_class=True)
    raise RuntimeError(f"the native code refused {name}, and nothing is wrong with it: a bug")


def class_means(x: Tensor, labels: Tensor, n_way: int, weight: Tensor | None) -> Tensor:
    """`prototypes` of what is known to fit."""
    classes = torch.arange(n_way, device=x.device)
    member = (labels.unsqueeze(1) == classes.unsqueeze(1)).to(x.dtype)  # [T, N, S]
    if weight is not None:
        member = member * weight.unsqueeze(1)
    share = member / member.sum(2, keepdim=True)
    # Sums of differences to the class' sample of the largest weight: features with a large common
    # offset would lose it in rounding. The shares of a class add up to 1, so that nothing depends
    # on the origin.
    origin = _rows(x.detach(), member.detach().argmax(2))
    return origin + share @ (x - _rows(origin, labels))


def _rows(x: Tensor, at: Tensor) -> Tensor:
    """[T, S, D], [T, N] -> [T, N, D]"""
    return x.gather(1, at.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _no_means(kernels: str, x: Tensor, labels: Tensor, n_way: int, weight: Any) -> Tensor:
    return x.new_empty(x.shape[0], n_way, x.shape[2])


@operation(
    "class_means(str kernels, Tensor x, Tensor labels, int n_way, Tensor? weight) -> Tensor",
    fake=_no_means,
)
def _native_means(
    kernels: ModuleType, x: Tensor, labels: Tensor, n_way: int, weight: Tensor | None
) -> Tensor:
    means = kernels.class_means(x, labels, n_way, weight)
    if means is None:
        refuse_labels("labels", labels, weight, n_way)
    return means


class _Means(Function):
    """(features, labels, n_way, weight, kernels) -> means, linear in the features"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, labels: Tensor, n_way: int, weight: Tensor | None, kernels: ModuleType
    ) -> Tensor:
        means = _native_means(kernels, x, labels, n_way, weight)
        ctx.n_way = n_way
        ctx.save_for_backward(labels, weight)
        return means

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        labels, weight = ctx.saved_tensors
        own = torch.ones_like(labels, dtype=grad.dtype) if weight is None else weight
        labels = torch.where(own > 0, labels, 0)
        classes = torch.arange(ctx.n_way, device=labels.device)[:, None]
        # Not scattered: on a GPU that adds up in an order of its own each time.
        of_class = (own.unsqueeze(1) * (labels.unsqueeze(1) == classes)).sum(2)
        share = own / of_class.gather(1, labels)
        rows = labels.unsqueeze(2).expand(-1, -1, grad.shape[2])
        return share.unsqueeze(2) * grad.gather(1, rows), None, None, None, None
