"""Batch norm, activation and max-pool in one: the block of convolutional few-shot networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.functional.eager import Function, traced_whole
from fastmeta.functional.normalize import (
    Gradients,
    Statistics,
    as_function_of,
    gradients,
    kernels_for,
    second_backward,
)
from fastmeta.functional.norms import batch_norm, check_batch, per_task
from fastmeta.functional.pooling import gather, largest, max_pool2d, scatter, window_of
from fastmeta.functional.transforms import (
    nobody_differentiates,
    nobody_transforms,
)

__all__ = ["batch_norm_pool"]


@traced_whole
def batch_norm_pool(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    negative_slope: float = 0.0, pool: int = 2,
) -> Tensor:  # fmt: skip
    """Normalise each channel with the task's statistics, then relu, then max-pool.

    In one pass over x after that for its statistics, where kernels run; else one operation after
    another.

    Args:
        x: [T, S, C, H, W], floating, with more than one value a channel.
        weight, bias: [T, C], or [C] shared by all tasks, or None for 1 and 0.
        eps: added to the variance.
        negative_slope: of the activation below 0, between 0 (relu) and 1 (none).
        pool: pixels of a window's side, 1 (none) or 2.

    Returns:
        [T, S, C, H // pool, W // pool], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        max_pool2d(F.leaky_relu(batch_norm(x, weight, bias, eps), negative_slope), pool)
    """
    check_batch(x, weight, bias)
    if x.dim() != 5:
        raise ValueError(f"x must be [T, S, C, H, W], not {list(x.shape)}")
    if not 0 <= negative_slope <= 1:
        raise ValueError(f"negative_slope must be between 0 and 1, not {negative_slope!r}")
    if pool not in (1, 2) or min(x.shape[3:]) < pool:
        raise ValueError(f"pool must be 1 or 2 and fit into x {list(x.shape)}, not {pool!r}")
    scale, shift = per_task(weight, x), per_task(bias, x)
    if nobody_transforms() and kernels_for(x, scale, shift) is not None:
        return _Block.apply(x, scale, shift, eps, float(negative_slope), pool)[0]
    y = F.leaky_relu(batch_norm(x, weight, bias, eps), negative_slope)
    return y if pool == 1 else max_pool2d(y, pool)


class _Block(Function):
    """(x, weight, bias) -> (y, mean, rstd)"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float,
        pool: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        kernels = kernels_for(x, weight, bias)
        assert kernels is not None
        y, mean, rstd = kernels.forward(x, weight, bias, eps, slope, pool)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)  # no zeros for mean and rstd
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.options = (eps, slope, pool)
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        run = _BlockBackward.apply if nobody_transforms() else _composed_backward
        of = run(grad, *ctx.saved_tensors, *ctx.options)
        return (
            of[0], of[1] if needs_weight else None, of[2] if needs_bias else None, None, None, None
        )  # fmt: skip


class _BlockBackward(Function):
    """(gradient for y, x, weight, bias, mean, rstd) -> gradients for (x, weight, bias)

    What depends on mean and rstd counts as depending on x, whose they are.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None,
        mean: Tensor, rstd: Tensor, eps: float, slope: float, pool: int,
    ) -> Gradients:  # fmt: skip
        ctx.save_for_backward(grad, x, weight, bias, mean, rstd)
        ctx.options = (eps, slope, pool)
        kernels = kernels_for(x, grad, weight, bias)
        if kernels is None:
            return _composed_backward(grad, x, weight, bias, mean, rstd, eps, slope, pool)
        return Gradients(*kernels.backward(grad, x, weight, bias, mean, rstd, slope, pool))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad, x, weight, bias, mean, rstd = ctx.saved_tensors
        eps, slope, pool = ctx.options
        kernels = kernels_for(x, grad, *grads, weight, bias) if nobody_differentiates() else None
        if kernels is not None:
            of_grad, of_x, of_weight = kernels.second_backward(
                grads, grad, x, weight, bias, mean, rstd, slope, pool
            )
        else:
            statistics = Statistics(mean, rstd, eps)
            of_grad, of_x, of_weight = _composed_second(
                Gradients(*grads), grad, x, weight, bias, statistics, slope, pool
            )
        needs_weight = weight is not None and ctx.needs_input_grad[2]
        return (
            of_grad, of_x, of_weight if needs_weight else None,
            None, None, None, None, None, None,
        )  # fmt: skip


# ---- the same of differentiable operations -----------------------------------------------------


def _composed_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, eps: float, slope: float, pool: int,
) -> Gradients:  # fmt: skip
    """Gradients for x, weight and bias."""
    taken = _Taken.of(x, weight, bias, eps, slope, pool)
    of_z = taken.back(grad).flatten(3)
    of = gradients(of_z, x.flatten(3), weight, Statistics(mean, rstd, eps))
    return Gradients(of.x.unflatten(3, taken.size), of.weight, of.bias)


def _composed_second(
    grads: Gradients, grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None,
    statistics: Statistics, slope: float, pool: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for grad, x and weight, from those for what the backward returns."""
    taken = _Taken.of(x, weight, bias, statistics.eps, slope, pool)
    flat = x.flatten(3)
    of_z, of_x, of_weight = second_backward(
        Gradients(grads.x.flatten(3), grads.weight, grads.bias),
        taken.back(grad).flatten(3), flat, weight, as_function_of(flat, statistics),
    )  # fmt: skip
    size = taken.size
    return taken.on(of_z.unflatten(3, size)), of_x.unflatten(3, size), of_weight


class _Taken(NamedTuple):
    """What activation and pool do to a change of their input: a linear map."""

    slopes: Tensor  # [T, S, C, H, W], of the activation
    at: Tensor | None  # the places of the largest pixels, where there is a pool

    @classmethod
    def of(
        cls, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float,
        pool: int,
    ) -> _Taken:  # fmt: skip
        with torch.no_grad():
            z = batch_norm(x, weight, bias, eps)
            slopes = torch.where(z > 0, 1.0, slope).to(x.dtype)
            return cls(slopes, largest(z * slopes, window_of(pool))[1] if pool > 1 else None)

    @property
    def size(self) -> tuple[int, int]:
        return self.slopes.shape[3], self.slopes.shape[4]

    def on(self, z: Tensor) -> Tensor:
        z = self.slopes * z
        return z if self.at is None else gather(z, self.at, window_of(2))

    def back(self, grad: Tensor) -> Tensor:
        """The transpose of `on`."""
        of_z = grad if self.at is None else scatter(grad, self.at, window_of(2), self.size)
        return self.slopes * of_z
