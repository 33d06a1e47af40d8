"""PyTorch's cross-entropy with labels at places, and with classes that weigh or are ignored.

A place is a pixel of an image, a word of a sequence; of a sample with one label it is the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.functional.loss_programs.program import NO_LABEL, CrossEntropyAtPlaces
from fastmeta.functional.row_programs import Unreadable, watched

__all__ = ["at_places"]


def at_places(
    loss: Callable[..., Tensor], output: Sequence[int], places: Sequence[int],
    samples: Sequence[int], others: Sequence[int], dtype: torch.dtype,
) -> CrossEntropyAtPlaces:  # fmt: skip
    """What a loss of labels [S, P...] is, where it is the mean of their cross-entropies.

    It is if it does nothing but move numbers and take PyTorch's, and comes to the same as that,
    with its gradient, of labels among which are all classes, and the one that is ignored.

    Args:
        output: the shape of a sample's predictions, [N, ...] or [..., N].
        places: that of its labels.
        samples: of how many that is looked at.
        others: and of how many more, from the first on, as long as that takes no time.

    Raises:
        Unreadable: it is another loss.
    """
    for classes_last in (False, True):
        classes = output[-1 if classes_last else 0] if output else 1
        if classes * prod(places) != prod(output):
            continue
        plain = CrossEntropyAtPlaces(loss, classes, prod(places), classes_last, NO_LABEL)
        several = -(-classes // plain.places) + 1  # among whose labels are all classes
        if several * prod(output) > _MOST:
            raise Unreadable(f"it makes more than {_MOST:,} numbers of labels at places")
        sums = accumulate(others)
        more = [n for n, total in zip(others, sums, strict=True) if total * prod(output) <= _MOST]
        counts = [*dict.fromkeys((several, *samples, *more))]
        found = _with_settings(plain, *_drawn(plain, several, output, places, dtype))
        # A mean over all places is the same where nothing is ignored.
        for like in dict.fromkeys((found, replace(found, ignored=NO_LABEL))):
            if all(_is(like, *_drawn(like, n, output, places, dtype)) for n in counts):
                return like
    raise Unreadable(
        "of several labels of a sample it takes another loss than the mean of their cross-entropies"
    )


def _drawn(
    loss: CrossEntropyAtPlaces, n: int, output: Sequence[int], places: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Predictions and labels of n samples."""
    generator = torch.Generator().manual_seed(n)
    predictions = torch.randn(n, *output, dtype=dtype, generator=generator)
    labels = torch.arange(n * loss.places) % loss.classes
    if loss.ignored != NO_LABEL:
        labels[loss.classes :: 3] = loss.ignored
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return predictions.requires_grad_(), labels.reshape(n, *places)


def _with_settings(
    loss: CrossEntropyAtPlaces, predictions: Tensor, labels: Tensor
) -> CrossEntropyAtPlaces:
    """With the label that it ignores, and the weights of its classes."""
    for name, args in watched(loss, (predictions, labels))[1]:
        if name in _LOSSES:
            weights = () if args[2] is None else tuple(args[2].tolist())
            return replace(loss, ignored=args[4], weights=weights)
    return loss


def _is(found: CrossEntropyAtPlaces, predictions: Tensor, labels: Tensor) -> bool:
    value, done = watched(found, (predictions, labels))
    if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
        return False
    if not _KNOWN.issuperset(name for name, _ in done) or _has_own_backward(value):
        return False
    with torch.enable_grad():
        wanted = _cross_entropy(found, predictions, labels)
    (gradient,) = torch.autograd.grad(value, predictions, materialize_grads=True)
    (wanted_gradient,) = torch.autograd.grad(wanted, predictions)
    return _near(value, wanted) and _near(gradient, wanted_gradient)


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Also where nothing counts, and the mean is NaN."""
    within = 1e-4 if wanted.dtype is torch.float32 else 1e-9
    scale = float(wanted.detach().nan_to_num().abs().max())
    return torch.allclose(found, wanted, rtol=0, atol=within * scale, equal_nan=True)


def _cross_entropy(found: CrossEntropyAtPlaces, predictions: Tensor, labels: Tensor) -> Tensor:
    if found.classes_last:
        predictions, labels = predictions.reshape(-1, found.classes), labels.flatten()
    else:
        predictions = predictions.reshape(len(labels), found.classes, -1)
        labels = labels.reshape(len(labels), -1)
    weight = predictions.new_tensor(found.weights) if found.weights else None
    return F.cross_entropy(predictions, labels, weight, ignore_index=found.ignored)


def _has_own_backward(value: Tensor) -> bool:
    """Whether an autograd.Function is in its graph, whose second derivative nobody knows."""
    seen: set[Any] = set()
    nodes = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
    return False


_MOST = 1 << 22  # numbers of predictions
_LOSSES = ("nll_loss_forward", "nll_loss2d_forward")
# What moves numbers, and the loss.
_KNOWN = frozenset((
    "view", "_unsafe_view", "permute", "transpose", "t", "clone", "alias", "unsqueeze", "squeeze",
    "expand", "_log_softmax", *_LOSSES, "mean",
))  # fmt: skip
