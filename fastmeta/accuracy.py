"""The share of samples that are classified as they are labelled."""

from __future__ import annotations

from torch import Tensor

__all__ = ["accuracy_of"]


def accuracy_of(logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """[T]: the weighted share of samples whose largest logit is that of their label.

    Of equal logits the first is the largest. A sample with a logit that is NaN counts as wrong;
    one of weight 0 does not count.

    Args:
        logits: [T, S, N].
        labels: [T, S], int64.
        weight: [T, S], or None for equal weights.
    """
    largest, first = logits.detach().max(-1)
    hits = ((first == labels) & (largest == largest)).to(logits.dtype)
    if weight is None:
        return hits.mean(1)
    return (hits * weight.detach()).sum(1) / weight.detach().sum(1)
