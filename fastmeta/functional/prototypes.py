"""Prototypes: the mean of each class of each task."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.functional.checks import check_samples, count_of
from fastmeta.functional.labels import (
    check_labels,
    check_weight,
    labels_in_range,
    without_padding,
)
from fastmeta.functional.precision import for_sums

__all__ = ["class_means", "prototypes"]


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
    if weight is not None:
        check_weight("weight", weight, "features", features)
        weight = for_sums(weight)
    labels = labels_in_range("labels", labels, weight, n_way, every_class=True)
    return class_means(for_sums(without_padding(features, weight)), labels, n_way, weight)


def class_means(x: Tensor, labels: Tensor, n_way: int, weight: Tensor | None) -> Tensor:
    """`prototypes` of what is known to fit."""
    classes = torch.arange(n_way, device=x.device)
    member = (labels.unsqueeze(1) == classes.unsqueeze(1)).to(x.dtype)  # [T, N, S]
    if weight is not None:
        member = member * weight.unsqueeze(1)
    share = member / member.sum(2, keepdim=True)
    # Sums of differences: those of features with a large common offset would lose it in rounding.
    # The shares of a class add up to 1, so that nothing depends on the origin.
    origin = x[:, :1].detach()
    return origin + share @ (x - origin)
