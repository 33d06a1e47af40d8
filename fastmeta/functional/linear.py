"""Linear layers with weights of their own for each task."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.backends import triton, triton_products
from fastmeta.functional.checks import check_parameter, check_samples
from fastmeta.functional.eager import Function, traced_whole
from fastmeta.functional.precision import PRECISIONS, product_precision
from fastmeta.functional.transforms import (
    fold_batch,
    refuse_nested_jvp,
    unfold_batch,
)
from fastmeta.words import kind_of

__all__ = ["linear"]


@traced_whole
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
        raise TypeError(f"weight must be a tensor, not {kind_of(weight)}")
    if weight.dim() not in (2, 3):
        raise ValueError(f"weight must be [T, O, I] or [O, I], not {list(weight.shape)}")
    outputs = weight.shape[-2]
    check_parameter("weight", weight, (outputs, x.shape[-1]), x)
    if bias is not None:
        check_parameter("bias", bias, (outputs,), x)
    return product(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` of tensors that are known to fit."""
    precision = product_precision()
    if triton.takes(x, weight, bias, precision=precision):
        return _on_gpu(x, weight, bias, precision)
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


def _on_gpu(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    if weight.dim() == 2 and (bias is None or bias.dim() == 1):  # one task with all samples
        one_bias = None if bias is None else bias.unsqueeze(0)
        rows = x.flatten(0, -2).unsqueeze(0)
        y = _Product.apply(rows, weight.unsqueeze(0), one_bias, precision)
        return y.reshape(*x.shape[:-1], y.shape[2])
    tasks = x.shape[0]
    if weight.dim() == 2:
        weight = weight.expand(tasks, *weight.shape)
    if bias is not None and bias.dim() == 1:
        bias = bias.expand(tasks, *bias.shape)
    if x.dim() == 3:
        return _Product.apply(x, weight, bias, precision)
    return _Product.apply(x.flatten(1, -2), weight, bias, precision).unflatten(1, x.shape[1:-1])


# ---- autograd, of the Triton kernels -----------------------------------------------------------
# Each derivative of x w^T + b, and of the weight gradient g^T x beside the sum of g, is one of the
# two. The precision goes with them, for derivatives are taken in other threads.


class _Product(Function):
    """(x [T, S, I], weight [T, O, I], bias [T, O]) -> [T, S, O]"""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
        return triton_products.linear(x, weight, bias, PRECISIONS[precision])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.precision = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_x = _Product.apply(grad, weight.mT, None, ctx.precision) if needs_x else None
        of_weight = of_bias = None
        if needs_weight:
            of_weight, of_bias = _WeightGradient.apply(grad, x, needs_bias, ctx.precision)
        elif needs_bias:
            of_bias = grad.sum(1)
        return of_x, of_weight, of_bias, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dweight: Tensor, dbias: Tensor | None, _: None) -> Tensor:
        refuse_nested_jvp()
        x, weight = ctx.saved_tensors
        through_x = _Product.apply(dx, weight, dbias, ctx.precision)
        return through_x + _Product.apply(x, dweight, None, ctx.precision)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, precision = inputs
        y = _Product.apply(*fold_batch(info.batch_size, in_dims, tensors), precision)
        return unfold_batch(info.batch_size, y), 0


class _WeightGradient(Function):
    """(grad [T, S, O], x [T, S, I]) -> [T, O, I] and the sum of grad [T, O], if asked for"""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, with_bias: bool, precision: str
    ) -> tuple[Tensor, Tensor | None]:
        return triton_products.linear_weight_gradient(grad, x, with_bias, PRECISIONS[precision])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, x, ctx.with_bias, ctx.precision = inputs
        ctx.save_for_backward(grad, x)
        ctx.save_for_forward(grad, x)

    @staticmethod
    def backward(
        ctx: Any, grad_weight: Tensor, grad_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        needs_grad, needs_x, _, _ = ctx.needs_input_grad
        precision = ctx.precision
        return (
            _Product.apply(x, grad_weight, grad_bias, precision) if needs_grad else None,
            _Product.apply(grad, grad_weight.mT, None, precision) if needs_x else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, dgrad: Tensor, dx: Tensor, _: None, __: None) -> tuple[Tensor, Tensor | None]:
        refuse_nested_jvp()
        grad, x = ctx.saved_tensors
        of_weight, of_bias = _WeightGradient.apply(dgrad, x, ctx.with_bias, ctx.precision)
        return of_weight + _WeightGradient.apply(grad, dx, False, ctx.precision)[0], of_bias

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, with_bias, precision = inputs
        folded = fold_batch(info.batch_size, in_dims, tensors)
        of_weight, of_bias = _WeightGradient.apply(*folded, with_bias, precision)
        unfolded = unfold_batch(info.batch_size, of_weight)
        if of_bias is None:
            return (unfolded, None), (0, None)
        return (unfolded, unfold_batch(info.batch_size, of_bias)), (0, 0)
