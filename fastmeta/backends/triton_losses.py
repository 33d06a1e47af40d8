"""The mean loss of each task in the Triton kernels: nothing checked here but what `takes` says.

Predictions are [T, S, O...], targets labels [T, S] for "cross_entropy" and else shaped like the
predictions, weights [T, S]. Half precision is summed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.backends import triton
from fastmeta.backends.registry import requested_backend
from fastmeta.kernels.loss_configs import MOST_OUTPUTS  # loads no Triton

__all__ = ["backward", "forward", "second_backward", "takes"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DTYPES = (*_FLOATS, torch.int64)  # labels
_MOST = 2**16  # numbers of a task, which one program reads: about 5 us


def takes(
    loss: str, predictions: Tensor, targets: Tensor, weight: Tensor | None, *others: Tensor
) -> bool:
    """Whether the kernels are to run on these; others are gradients.

    Raises:
        ValueError: the backend "triton" is demanded and cannot run this, with the reason.
    """
    if not predictions.is_cuda and requested_backend() != "triton":
        return False
    tensors = (predictions, targets, weight, *others)
    return _fits(loss, predictions, targets, weight) and triton.takes(*tensors, dtypes=_DTYPES)


def _fits(loss: str, predictions: Tensor, targets: Tensor, weight: Tensor | None) -> bool:
    """Whether shapes and dtypes are those of the kernels; what else there is, PyTorch takes."""
    shape, device = predictions.shape, predictions.device
    if len(shape) < 2 or predictions.dtype not in _FLOATS or 0 in shape:
        return False
    if targets.device != device or (weight is not None and weight.device != device):
        return False
    outputs = shape[2:].numel()
    if outputs > MOST_OUTPUTS or outputs * shape[1] > _MOST:
        return False
    if loss == "cross_entropy":
        fits = len(shape) == 3 and targets.shape == shape[:2] and targets.dtype is torch.int64
    else:
        fits = targets.shape == shape and targets.dtype in _FLOATS
    if weight is not None:
        fits = fits and weight.shape == shape[:2] and weight.dtype in _FLOATS
    return fits


@triton.on_their_device
def forward(predictions: Tensor, targets: Tensor, weight: Tensor | None, loss: str) -> Tensor:
    """The mean losses [T], of the dtype that PyTorch's operations give."""
    from fastmeta.kernels.task_loss import task_loss

    x, y = _in_rows(predictions, targets)
    return task_loss(x, y, weight, loss, _dtype_of(predictions, targets, weight))


@triton.on_their_device
def backward(
    grad: Tensor, predictions: Tensor, targets: Tensor, weight: Tensor | None, loss: str
) -> Tensor:
    """The gradient for the predictions, from that [T] for what `forward` returns."""
    from fastmeta.kernels.task_loss_gradient import task_loss_gradient

    x, y = _in_rows(predictions, targets)
    sums = _dtype_of(predictions, targets, weight)
    return task_loss_gradient(grad, x, y, weight, loss, sums).reshape(predictions.shape)


@triton.on_their_device
def second_backward(
    along: Tensor, grad: Tensor, predictions: Tensor, targets: Tensor, weight: Tensor | None,
    loss: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients for grad and the predictions, from that for what `backward` returns."""
    from fastmeta.kernels.task_loss_gradient import task_loss_second

    x, y = _in_rows(predictions, targets)
    sums = _dtype_of(predictions, targets, weight)
    for_grad, for_x = task_loss_second(along.reshape(x.shape), grad, x, y, weight, loss, sums)
    return for_grad, for_x.reshape(predictions.shape)


def _in_rows(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions [T, S, O], and targets likewise unless they are labels."""
    rows = predictions.shape[:2]
    flat = predictions.reshape(*rows, -1)
    return flat, targets.reshape(*rows, -1) if targets.is_floating_point() else targets


def _dtype_of(predictions: Tensor, targets: Tensor, weight: Tensor | None) -> torch.dtype:
    """What products and differences of these are in, of which labels are no part."""
    dtype = predictions.dtype
    for other in (targets, weight):
        if other is not None and other.is_floating_point():
            dtype = torch.promote_types(dtype, other.dtype)
    return dtype
