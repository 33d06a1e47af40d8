"""Normalisation of channels, with its derivatives of any order: what all norms stand on.

x is [T, S, C, L]; the statistics of a channel of a task are over S and L, n numbers. With
x' = (x - mean) * rstd, rstd = (variance + eps)^-1/2 and y = weight * x' + bias,

    gradient for x = weight * rstd * (g - mean(g) - x' * mean(g * x'))

and its derivatives in turn are made of the same sums.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.backends import norms, triton_norm
from fastmeta.functional.eager import Function
from fastmeta.functional.layout import in_channels, of_tasks
from fastmeta.functional.transforms import (
    fold_batch,
    nobody_differentiates,
    refuse_nested_jvp,
    unfold_batch,
)

__all__ = [
    "Gradients", "Statistics", "as_function_of", "gradients", "kernels_for", "normalize",
    "second_backward",
]  # fmt: skip


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise the channels of each task.

    Args:
        x: [T, S, C, L].
        weight, bias: [T, C], or None for 1 and 0.
        eps: added to the variance.

    Returns:
        [T, S, C, L], differentiable to any order.

    Equivalent to::

        torch.stack([F.batch_norm(x[t], None, None, weight[t], bias[t], training=True, eps=eps)
                     for t in range(T)])
    """
    return _Normalize.apply(x, weight, bias, eps)[0]


class Statistics(NamedTuple):
    mean: Tensor  # [T, C]
    rstd: Tensor
    eps: float


class Gradients(NamedTuple):
    x: Tensor  # [T, S, C, L]
    weight: Tensor  # [T, C]
    bias: Tensor


# ---- the three passes --------------------------------------------------------------------------


def kernels_for(x: Tensor, *others: Tensor | None) -> ModuleType | None:
    """Who has the three passes for x [T, S, C, ...] and what belongs to it; None: PyTorch."""
    return next((kernels for kernels in (triton_norm, norms) if kernels.takes(x, *others)), None)


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Statistics]:
    kernels = kernels_for(x, weight, bias)
    if kernels is not None:
        y, mean, rstd = kernels.forward(x.unsqueeze(3), weight, bias, eps, 1.0, 1)
        return y.squeeze(3), Statistics(mean, rstd, eps)
    tasks, rows = len(x), in_channels(x)
    y, mean, rstd = torch.native_batch_norm(
        rows, _flat(weight), _flat(bias), None, None, True, 0.0, eps
    )
    return of_tasks(y, tasks), Statistics(_by_task(mean, tasks), _by_task(rstd, tasks), eps)


def _backward(grad: Tensor, x: Tensor, weight: Tensor | None, statistics: Statistics) -> Gradients:
    kernels = kernels_for(grad, x, weight)
    if kernels is not None:
        mean, rstd, _ = statistics
        of_x, of_weight, of_bias = kernels.backward(
            grad.unsqueeze(3), x.unsqueeze(3), weight, None, mean, rstd, 1.0, 1
        )
        return Gradients(of_x.squeeze(3), of_weight, of_bias)
    tasks = len(x)
    of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        in_channels(grad), in_channels(x), _flat(weight), None, None,
        statistics.mean.flatten(), statistics.rstd.flatten(), True, 0.0, [True, True, True],
    )  # fmt: skip
    return Gradients(of_tasks(of_x, tasks), _by_task(of_weight, tasks), _by_task(of_bias, tasks))


def second_backward(
    grads: Gradients, grad: Tensor, x: Tensor, weight: Tensor | None, statistics: Statistics
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for (grad, x, weight), from those for what `_backward` returns.

    Differentiable in turn, where `statistics` are a differentiable function of x.
    """
    mean, rstd, _ = statistics
    kernels = kernels_for(x, *grads, grad, weight) if nobody_differentiates() else None
    if kernels is not None:
        along = (grads.x.unsqueeze(3), grads.weight, grads.bias)
        for_grad, for_x, for_weight = kernels.second_backward(
            along, grad.unsqueeze(3), x.unsqueeze(3), weight, None, mean, rstd, 1.0, 1
        )
        return for_grad.squeeze(3), for_x.squeeze(3), for_weight
    n = x.shape[1] * x.shape[3]
    scale = rstd if weight is None else weight * rstd
    of_grad_x = gradients(grads.x, x, weight, statistics)
    of_grad = gradients(grad, x, weight, statistics)
    # Means over n of grad (g), of grads.x (a), of their products with x', and of g * a.
    m_g, m_gx = of_grad.bias / n, of_grad.weight / n
    m_a, m_ax = of_grad_x.bias / n, of_grad_x.weight / n
    curvature = (grads.x * grad).sum((1, 3)) / n - m_a * m_g - m_ax * m_gx
    on_g = rstd * (grads.weight - scale * m_ax)
    on_a = -scale * rstd * m_gx
    on_x = rstd**2 * ((2 * scale * m_ax - grads.weight) * m_gx - scale * curvature)
    constant = -on_g * m_g - on_a * m_a - on_x * mean
    for_x = _combine(constant, (on_x, x), (on_g, grad), (on_a, grads.x))
    for_grad = _affine(x, grads.weight, grads.bias, statistics) + of_grad_x.x
    return for_grad, for_x, n * rstd * curvature


def _affine(x: Tensor, weight: Tensor, bias: Tensor, statistics: Statistics) -> Tensor:
    """weight * x' + bias"""
    scale = weight * statistics.rstd
    return _combine(bias - scale * statistics.mean, (scale, x))


def _combine(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + sum of factor * z, with [T, C] of each channel and z [T, S, C, L]."""
    total = torch.addcmul(_of_channel(constant), _of_channel(terms[0][0]), terms[0][1])
    add = Tensor.addcmul_ if nobody_differentiates() else Tensor.addcmul
    for factor, z in terms[1:]:
        total = add(total, _of_channel(factor), z)
    return total


def _of_channel(values: Tensor) -> Tensor:
    return values[:, None, :, None]


def _flat(per_task: Tensor | None) -> Tensor | None:
    return None if per_task is None else per_task.flatten()


def _by_task(values: Tensor, tasks: int) -> Tensor:
    return values.unflatten(0, (tasks, -1))


# ---- autograd ----------------------------------------------------------------------------------


def gradients(grad: Tensor, x: Tensor, weight: Tensor | None, statistics: Statistics) -> Gradients:
    """Gradients for (x, weight, bias), from that for what `normalize` returns.

    Differentiable to any order; what depends on the statistics counts as depending on x.
    """
    return Gradients(*_NormalizeBackward.apply(grad, x, weight, *statistics))


class _Normalize(Function):
    """(x, weight, bias) -> (y, mean, rstd)"""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, statistics = _forward(x, weight, bias, eps)
        return y, statistics.mean, statistics.rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.eps = inputs
        mean, rstd = output[1:]
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.save_for_forward(x, weight, mean, rstd)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of = gradients(grad, x, weight, Statistics(mean, rstd, ctx.eps))
        return of.x, of.weight if needs_weight else None, of.bias if needs_bias else None, None

    @staticmethod
    def jvp(
        ctx: Any, dx: Tensor, dweight: Tensor | None, dbias: Tensor | None, _: None
    ) -> tuple[Tensor, None, None]:
        refuse_nested_jvp()
        x, weight, mean, rstd = ctx.saved_tensors
        statistics = as_function_of(x, Statistics(mean, rstd, ctx.eps))
        dy = gradients(dx, x, weight, statistics).x
        if dweight is not None:
            dy = dy + _affine(x, dweight, torch.zeros_like(dweight), statistics)
        return dy if dbias is None else dy + _of_channel(dbias), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        *tensors, eps = inputs
        outputs = _Normalize.apply(*fold_batch(info.batch_size, in_dims, tensors), eps)
        return tuple(unfold_batch(info.batch_size, out) for out in outputs), 0


class _NormalizeBackward(Function):
    """(gradient for y, x, weight, mean, rstd) -> gradients for (x, weight, bias)

    What depends on mean and rstd counts as depending on x, whose they are.
    """

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(grad, x, weight, Statistics(mean, rstd, eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, weight, mean, rstd = ctx.saved_tensors
        statistics = as_function_of(x, Statistics(mean, rstd, ctx.eps))
        of_grad, of_x, of_weight = second_backward(Gradients(*grads), grad, x, weight, statistics)
        return of_grad, of_x, None if weight is None else of_weight, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, dgrad: Tensor, dx: Tensor, dweight: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        refuse_nested_jvp()
        grad, x, weight, mean, rstd = ctx.saved_tensors
        statistics = as_function_of(x, Statistics(mean, rstd, ctx.eps))
        through_grad = gradients(dgrad, x, weight, statistics)
        # The gradients for x, weight and bias are of one scalar: their derivative is symmetric.
        zero = torch.zeros_like(mean)
        direction = Gradients(dx, zero if dweight is None else dweight, zero)
        _, of_x, of_weight = second_backward(direction, grad, x, weight, statistics)
        return through_grad.x + of_x, through_grad.weight + of_weight, through_grad.bias

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        *tensors, eps = inputs
        outputs = _NormalizeBackward.apply(*fold_batch(info.batch_size, in_dims, tensors), eps)
        return tuple(unfold_batch(info.batch_size, out) for out in outputs), 0


def as_function_of(x: Tensor, statistics: Statistics) -> Statistics:
    """The same numbers, differentiable in x where somebody may differentiate them."""
    if nobody_differentiates():
        return statistics
    variance, mean = torch.var_mean(x, (1, 3), correction=0)
    return Statistics(mean, (variance + statistics.eps).rsqrt(), statistics.eps)
