"""The share of samples that are classified as they are labelled."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accuracy_of"]


def accuracy_of(logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """[T]: the weighted share of samples whose largest logit is that of their label.

    Of equal logits the first is the largest. A sample with a logit that is NaN counts as wrong;
    one of weight 0 does not count, nor does a label that is no class, as losses ignore some. Of a
    sample with labels at places each place counts.

    Args:
        logits: [T, S, N], [T, S, N, P...] or [T, S, P..., N].
        labels: [T, S] or [T, S, P...], int64.
        weight: [T, S], or None for equal weights.

    Raises:
        ValueError: the two do not fit, or it cannot be told which dimension is N.
    """
    dim = _classes(logits.shape, labels.shape)
    largest, first = logits.detach().max(dim)
    hits = ((first == labels) & (largest == largest)).to(logits.dtype)
    counts = ((labels >= 0) & (labels < logits.shape[dim])).to(logits.dtype)
    if weight is not None:
        counts = counts * weight.detach().reshape(*weight.shape, *[1] * (labels.dim() - 2))
    return (hits * counts).flatten(1).sum(1) / counts.flatten(1).sum(1)


def _classes(logits: torch.Size, labels: torch.Size) -> int:
    """The dimension of the classes."""
    first, last = logits[:2] + logits[3:] == labels, logits[:-1] == labels
    if len(logits) > 3 and first and last:
        raise ValueError(
            f"classes may be the third or the last dimension of predictions {list(logits)}, by "
            f"labels {list(labels)}: count their accuracy yourself"
        )
    if not first and not last:
        raise ValueError(
            f"accuracy needs a label for each N of predictions, and predictions are "
            f"{list(logits)}, labels {list(labels)}"
        )
    return 2 if first else len(logits) - 1
