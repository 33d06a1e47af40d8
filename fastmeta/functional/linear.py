"""Linear layers with weights of their own for each task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.functional.checks import check_parameter, check_samples

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply each task's samples by its own weight.

    Args:
        x: [T, S, ..., I], floating.
        weight: [T, O, I], or [O, I] shared by all tasks.
        bias: [T, O] or [O].

    Returns:
        [T, S, ..., O], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([F.linear(x[t], weight[t], bias[t]) for t in range(T)])
    """
    check_samples("x", x, "[T, S, ...]")
    if x.dim() < 3:
        raise ValueError(f"x must be [T, S, ..., I], not {list(x.shape)}")
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, not {type(weight).__name__}")
    if weight.dim() not in (2, 3):
        raise ValueError(f"weight must be [T, O, I] or [O, I], not {list(weight.shape)}")
    outputs = weight.shape[-2]
    check_parameter("weight", weight, (outputs, x.shape[-1]), x)
    if bias is not None:
        check_parameter("bias", bias, (outputs,), x)
    return product(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` of tensors that are known to fit."""
    if weight.dim() == 2 and (bias is None or bias.dim() == 1):
        return F.linear(x, weight, bias)
    rows = x.flatten(1, -2)  # [T, samples, I]
    weight = weight.expand(len(x), *weight.shape[-2:]).mT
    if bias is None:
        y = torch.bmm(rows, weight)
    else:
        bias = bias.expand(len(x), bias.shape[-1])
        y = torch.baddbmm(bias.unsqueeze(1), rows, weight)
    return y.unflatten(1, x.shape[1:-1])
