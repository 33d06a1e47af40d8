"""The mean loss of each task in kernels: one for the losses, one for each of two derivatives.

Third and higher derivatives are made of differentiable operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.backends import triton_losses as kernels
from fastmeta.backends.halves import is_half
from fastmeta.backends.operation import is_traced
from fastmeta.functional.eager import Function
from fastmeta.functional.transforms import nobody_differentiates, nobody_transforms

__all__ = ["fused_loss"]


def fused_loss(
    loss: str, predictions: Tensor, targets: Tensor, weight: Tensor | None
) -> Tensor | None:
    """The loss [T] by one kernel, differentiable to any order in the predictions.

    None where the kernels are not to run, or something else needs a gradient.

    loss: "cross_entropy", "mse" or "bce"; predictions [T, S, O...], targets [T, S] or like them.
    """
    if torch.compiler.is_compiling() or is_traced() or not nobody_transforms():
        return None
    if targets.requires_grad or (weight is not None and weight.requires_grad):
        return None
    if is_half(predictions) and torch.is_autocast_enabled(predictions.device.type):
        return None  # whose operations choose their precision
    if not kernels.takes(loss, predictions, targets, weight):
        return None
    return _Loss.apply(predictions, targets, weight, loss)


class _Loss(Function):
    """(predictions, targets, weight) -> losses [T]"""

    @staticmethod
    def forward(
        ctx: Any, predictions: Tensor, targets: Tensor, weight: Tensor | None, loss: str
    ) -> Tensor:
        ctx.save_for_backward(predictions, targets, weight)
        ctx.loss = loss
        return kernels.forward(predictions, targets, weight, loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = (grad, *ctx.saved_tensors, ctx.loss)
        run = _LossGradient.apply if _is_plain(grad) else _composed_gradient
        return run(*given), None, None, None


class _LossGradient(Function):
    """(gradient for the losses [T], predictions, targets, weight) -> gradient for predictions"""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, predictions: Tensor, targets: Tensor, weight: Tensor | None,
        loss: str,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(grad, predictions, targets, weight)
        ctx.loss = loss
        if kernels.takes(loss, predictions, targets, weight, grad):
            return kernels.backward(grad, predictions, targets, weight, loss)
        return _composed_gradient(grad, predictions, targets, weight, loss)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:
        grad, predictions, targets, weight = ctx.saved_tensors
        given = (grad, predictions, targets, weight, ctx.loss)
        plain = nobody_differentiates() and _is_plain(along)
        if plain and kernels.takes(ctx.loss, predictions, targets, weight, grad, along):
            of = kernels.second_backward(along, *given)
        else:
            of = _composed_second(along, *given)
        return *of, None, None, None


def _is_plain(grad: Tensor) -> bool:
    """Whether it is one tensor and no batch of them (`is_grads_batched=True`)."""
    return nobody_transforms() and not torch._C._functorch.is_legacy_batchedtensor(grad)


# ---- the same of differentiable operations -----------------------------------------------------


def _composed_gradient(
    grad: Tensor, predictions: Tensor, targets: Tensor, weight: Tensor | None, loss: str
) -> Tensor:
    """The gradient for the predictions."""
    if loss == "cross_entropy":
        classes = torch.arange(predictions.shape[2], device=targets.device)
        slopes = predictions.softmax(2) - (targets.unsqueeze(2) == classes).to(predictions.dtype)
    elif loss == "mse":
        slopes = 2 * (predictions - targets) / _outputs(predictions)
    else:
        slopes = (predictions.sigmoid() - targets) / _outputs(predictions)
    return (_shares(grad, predictions, weight) * slopes).to(predictions.dtype)


def _composed_second(
    along: Tensor, grad: Tensor, predictions: Tensor, targets: Tensor, weight: Tensor | None,
    loss: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients for grad and the predictions, from that for the gradient."""
    of_one = _composed_gradient(torch.ones_like(grad), predictions, targets, weight, loss)
    of_grad = (along * of_one).sum(tuple(range(1, predictions.dim())))
    if loss == "cross_entropy":
        p = predictions.softmax(2)
        curves = p * (along - (along * p).sum(2, keepdim=True))
    elif loss == "mse":
        curves = 2 * along / _outputs(predictions)
    else:
        curves = predictions.sigmoid() * (-predictions).sigmoid() * along / _outputs(predictions)
    of_predictions = _shares(grad, predictions, weight) * curves
    return of_grad.to(grad.dtype), of_predictions.to(predictions.dtype)


def _outputs(predictions: Tensor) -> int:
    return predictions.shape[2:].numel()


def _shares(grad: Tensor, predictions: Tensor, weight: Tensor | None) -> Tensor:
    """What the gradient of its task gives to each sample, [T, S or 1, 1...]."""
    rows = grad.unsqueeze(1)
    rows = rows / predictions.shape[1] if weight is None else rows * weight / weight.sum(1, True)
    return rows.reshape(*rows.shape, *[1] * (predictions.dim() - 2))
