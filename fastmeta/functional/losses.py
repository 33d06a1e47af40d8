"""Losses of many tasks at once: one number a task, padding weighted away."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.functional.capture import assert_later, is_capturing
from fastmeta.functional.eager import traced_whole
from fastmeta.functional.fused_loss import fused_loss
from fastmeta.functional.transforms import (
    NotForManyTasks,
    explaining_vmap,
    numbers_of,
    values_of,
)

__all__ = [
    "LOSSES", "Loss", "bce", "check_signature", "checked_loss", "cross_entropy", "mse_loss",
    "named", "needs_weight", "takes_weight", "task_loss",
]  # fmt: skip

Loss = str | Callable[..., Tensor]


@traced_whole
def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the samples of each task, and over their places.

    Args:
        logits: [T, S, N], floating; or [T, S, N, P...] with a label at each place of a sample.
        labels: [T, S] or [T, S, P...], int64, in [0, N).
        weight: [T, S], not negative; the mean becomes sum(weight * loss) / sum(weight).

    Returns:
        [T], differentiable to any order.

    Raises:
        ValueError: shapes that do not fit, or a label outside [0, N).
        TypeError: labels that are not int64.

    Equivalent to::

        torch.stack([F.cross_entropy(logits[t], labels[t]) for t in range(T)])
    """
    if logits.dim() < 3 or labels.shape != logits.shape[:2] + logits.shape[3:]:
        raise ValueError(
            f"logits [T, S, N, P...] and labels [T, S, P...] do not fit: {_shape(logits)} and "
            f"{_shape(labels)}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, not {labels.dtype}")
    if is_capturing(labels):
        assert_later((labels >= 0) & (labels < logits.shape[2]), "labels outside their classes")
    else:
        _check_range(values_of(labels), logits.shape[2])
    _check_weight(weight, logits)
    return task_loss("cross_entropy", logits, labels, weight)


def mse_loss(predictions: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over the samples and outputs of each task.

    Args:
        predictions, targets: [T, S, O...], floating.
        weight: [T, S], not negative; the mean over samples becomes sum(weight * loss) /
            sum(weight).

    Returns:
        [T], differentiable to any order.

    Raises:
        ValueError: shapes that do not fit.

    Equivalent to::

        torch.stack([F.mse_loss(predictions[t], targets[t]) for t in range(T)])
    """
    _check_same_shape(predictions, targets)
    _check_weight(weight, predictions)
    return task_loss("mse", predictions, targets, weight)


def bce(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy, from logits, over the samples and outputs of each task.

    Args:
        logits, targets: [T, S, O...], floating; targets in [0, 1].
        weight: [T, S], not negative; the mean over samples becomes sum(weight * loss) /
            sum(weight).

    Returns:
        [T], differentiable to any order.

    Raises:
        ValueError: shapes that do not fit.

    Equivalent to::

        torch.stack([F.binary_cross_entropy_with_logits(logits[t], targets[t]) for t in range(T)])
    """
    _check_same_shape(logits, targets)
    _check_weight(weight, logits)
    return task_loss("bce", logits, targets, weight)


def checked_loss(loss: Loss, predictions: Tensor, targets: Tensor) -> Tensor:
    """`task_loss` of predictions that nobody has checked; ValueError and TypeError by name."""
    if not isinstance(loss, str):
        return task_loss(loss, predictions, targets, None)
    if loss not in _BY_NAME:
        raise ValueError(f"loss must be one of {[*_BY_NAME]} or a callable, not {loss!r}")
    return _BY_NAME[loss](predictions, targets)


def task_loss(loss: Loss, predictions: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """The loss [T] of checked predictions [T, S, O...], by name or by a task's callable."""
    if isinstance(loss, str):
        fused = fused_loss(loss, predictions, targets, weight)
        if fused is not None:
            return fused
        return _weighted_mean(LOSSES[loss](predictions, targets), weight)
    if weight is None and needs_weight(loss):
        weight = predictions.new_ones(predictions.shape[:2])
    arguments = (predictions, targets) if weight is None else (predictions, targets, weight)
    try:
        with explaining_vmap(f"the loss {getattr(loss, '__name__', type(loss).__name__)}"):
            return torch.func.vmap(loss)(*arguments)
    except NotForManyTasks:
        return torch.stack([loss(*task) for task in zip(*arguments, strict=True)])


def named(loss: Loss, targets: Tensor | None = None) -> Loss:
    """The name of a loss that is PyTorch's own with nothing set, else the loss as it came.

    `F.cross_entropy` and `nn.CrossEntropyLoss()` are "cross_entropy" of targets [T, S] of class
    labels; of class probabilities they have no name here, nor of labels at places, some of which
    they may ignore. Nor have the other losses of targets that
    are whole numbers, which PyTorch's functions take.
    """
    if isinstance(loss, str):
        return loss
    if not callable(loss):  # InnerLoop refuses it
        return loss
    if not _has_hash(loss):
        loss = cast(Any, loss).__call__  # a method has a hash, and keeps its object
    name = _module_name(loss) if isinstance(loss, nn.Module) else _FUNCTIONS.get(loss)
    if name is None or targets is None:
        return name or loss
    if name == "cross_entropy":
        return name if targets.dtype is torch.int64 and targets.dim() == 2 else loss
    return name if targets.is_floating_point() else loss


def _has_hash(loss: Any) -> bool:
    try:
        hash(loss)
    except TypeError:
        return False
    return True


def _module_name(loss: nn.Module) -> str | None:
    plain = _MODULES.get(type(loss))
    if plain is None or "forward" in vars(loss) or _has_hooks(loss):
        return None
    name, settings = plain
    same = all(getattr(loss, key) == value for key, value in settings.items())
    return name if same and not any(b is not None for b in loss._buffers.values()) else None


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip


def takes_weight(loss: Loss) -> bool:
    """Whether a loss can be given sample weights: a name, or ``f(predictions, targets, weight)``.

    Losses of torch itself mean class weights by `weight`, so they do not count.
    """
    return isinstance(loss, str) or _weight_parameter(loss) is not None


@functools.lru_cache(maxsize=128)
def needs_weight(loss: Callable[..., Tensor]) -> bool:
    """Whether a loss must be given sample weights: such a parameter has no default."""
    parameter = _weight_parameter(loss)
    return parameter is not None and parameter.default is parameter.empty


def check_signature(loss: Callable[..., Tensor]) -> None:
    """TypeError unless it can be called with predictions and targets (and weights, if it must)."""
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except ValueError:  # built in, without a signature
        return
    try:
        signature.bind(*[None] * (3 if needs_weight(loss) else 2))
    except TypeError as error:
        raise TypeError(
            f"loss must take (predictions, targets) or (predictions, targets, weight), where the "
            f"third is weights of samples and must have that name, not {signature}: {error}"
        ) from None


def _weight_parameter(loss: Callable[..., Tensor]) -> inspect.Parameter | None:
    """The third parameter, if its name is `weight`."""
    function = loss.forward if isinstance(loss, nn.Module) else loss
    if (getattr(function, "__module__", None) or "").startswith("torch."):
        return None
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except ValueError:  # built in, without a signature
        return None
    third = parameters[2:3]
    return third[0] if third and third[0].name == "weight" else None


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    picked = logits.log_softmax(2).gather(2, labels.unsqueeze(2)).squeeze(2)
    return _mean_over_outputs(-picked)


def _squared_errors(predictions: Tensor, targets: Tensor) -> Tensor:
    return _mean_over_outputs((predictions - targets).square())


def _binary_cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    # Written out: double backward of the fused loss is missing in some releases of torch. Nothing
    # is subtracted, so that small losses keep their digits; float64 has exp(-x) up to x = 37.
    for_zero, for_one = F.softplus(logits, threshold=40.0), F.softplus(-logits, threshold=40.0)
    return _mean_over_outputs((1 - targets) * for_zero + targets * for_one)


LOSSES = {
    "cross_entropy": _cross_entropies,
    "mse": _squared_errors,
    "bce": _binary_cross_entropies,
}


_BY_NAME: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "mse": mse_loss,
    "bce": bce,
}
_FUNCTIONS: dict[Any, str] = {
    F.cross_entropy: "cross_entropy",
    F.mse_loss: "mse",
    F.binary_cross_entropy_with_logits: "bce",
}
_MODULES: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.CrossEntropyLoss: (
        "cross_entropy", {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0}
    ),
    nn.MSELoss: ("mse", {"reduction": "mean"}),
    nn.BCEWithLogitsLoss: ("bce", {"reduction": "mean"}),
}  # fmt: skip


def _mean_over_outputs(losses: Tensor) -> Tensor:
    return losses.flatten(2).mean(2) if losses.dim() > 2 else losses


def _weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.mean(1)
    return (weight * losses).sum(1) / weight.sum(1)


def _check_range(labels: Tensor, classes: int) -> None:
    if labels.numel() == 0:
        return
    both = torch.stack(labels.aminmax())  # a GPU is waited for once
    low, high = numbers_of(both)
    if low < 0 or high >= classes:
        raise ValueError(f"labels outside [0, {classes}): {labels.unique().tolist()}")


def _check_same_shape(predictions: Tensor, targets: Tensor) -> None:
    if predictions.dim() < 2 or predictions.shape != targets.shape:
        raise ValueError(
            "predictions and targets must have one shape [T, S, O...], not "
            f"{_shape(predictions)} and {_shape(targets)}"
        )


def _check_weight(weight: Tensor | None, predictions: Tensor) -> None:
    if weight is not None and weight.shape != predictions.shape[:2]:
        raise ValueError(
            f"weight [T, S] must be {list(predictions.shape[:2])}, not {_shape(weight)}"
        )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
