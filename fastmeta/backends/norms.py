"""Norm of channels, with activation and max-pool, in the native CPU code: nothing checked here.

The activation is max(z, slope * z), 0 <= slope <= 1: relu with 0, none with 1. The pool takes
`pool` x `pool` pixels, without overlap; 1 is none. Results lie in memory as x does: the pixels of a
channel side by side, samples or tasks first, or the channels of a pixel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.backends.image_layout import along_pixels, empty, in_memory, laid_out
from fastmeta.backends.operation import FakeTensor, operation

__all__ = ["backward", "forward", "second_backward", "takes"]

_KERNELS = {torch.float32: "norm_float32", torch.float64: "norm_float64"}
_FORWARD, _BACKWARD, _SECOND_BACKWARD = range(3)

takes = cpu.takes


@operation(
    "norm(Tensor x, Tensor? weight, Tensor? bias, float eps, float slope, int pool) "
    "-> (Tensor, Tensor, Tensor)"
)
def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """[T, S, C, H, W] and [T, C] twice -> [T, S, C, H', W'], mean and 1 / deviation [T, C]."""
    x = laid_out(x, along_pixels(x))
    y = _like(x, pool)
    mean, rstd = _per_channel(x), _per_channel(x)
    _run(_FORWARD, pool, eps, slope, (x, y), (weight, bias, mean, rstd))
    return y, mean, rstd


@operation(
    "norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, "
    "float slope, int pool) -> (Tensor, Tensor, Tensor)"
)
def backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, slope: float, pool: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for x, weight and bias, from that for what `forward` returns."""
    x = laid_out(x, along_pixels(x))
    for_x, for_weight, for_bias = _like(x), _per_channel(x), _per_channel(x)
    _run(
        _BACKWARD, pool, 0.0, slope, (x, grad, None, for_x),
        (weight, bias, mean, rstd, None, None, for_weight, for_bias),
    )  # fmt: skip
    return for_x, for_weight, for_bias


@operation(
    "norm_second_backward(Tensor[] grads, Tensor grad, Tensor x, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor rstd, float slope, int pool) -> (Tensor, Tensor, Tensor)"
)
def second_backward(
    grads: tuple[Tensor, Tensor, Tensor], grad: Tensor, x: Tensor, weight: Tensor | None,
    bias: Tensor | None, mean: Tensor, rstd: Tensor, slope: float, pool: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for grad, x and weight, from those for what `backward` returns."""
    x = laid_out(x, along_pixels(x))
    for_x, for_grad, for_weight = _like(x), _like(x, pool), _per_channel(x)
    of_x, of_weight, of_bias = grads
    _run(
        _SECOND_BACKWARD, pool, 0.0, slope, (x, grad, of_x, for_x, for_grad),
        (weight, bias, mean, rstd, of_weight, of_bias, for_weight),
    )  # fmt: skip
    return for_grad, for_x, for_weight


def _run(
    form: int, pool: int, eps: float, slope: float, images: tuple[Tensor | None, ...],
    per_channel: tuple[Tensor | None, ...],
) -> None:  # fmt: skip
    """images: x, y, a, for_x, for_y; per_channel: weight, bias, mean, rstd, u, v, and results.

    See `Norm` in csrc/network/spec.h. What is written is laid out for it, the rest is made so.
    """
    x, y, *others = (z if z is None else in_memory(z) for z in images)
    assert x is not None and y is not None
    if type(x) is FakeTensor:
        return
    by_pixels = along_pixels(x)
    laid = [z if z is None else laid_out(z, by_pixels) for z in (x, y, *others)]
    own = (z if z is None else in_memory(z) for z in per_channel)
    sides = [z if z is None or z.stride(1) == 1 else z.contiguous() for z in own]
    kernel: Any = getattr(cpu.native, _KERNELS[x.dtype])
    kernel(
        form, tuple(x.shape), pool, eps, slope, by_pixels, torch.get_num_threads(),
        _padded([z if z is None else (z.data_ptr(), z.stride()) for z in laid], 5),
        _padded([z if z is None else (z.data_ptr(), z.stride(0)) for z in sides], 8),
    )  # fmt: skip


def _padded(values: list[Any], n: int) -> list[Any]:
    return values + [None] * (n - len(values))


def _like(x: Tensor, pool: int = 1) -> Tensor:
    """For pixels of x, or the largest of windows of them."""
    return empty(x, x.shape[3] // pool, x.shape[4] // pool, along_pixels(x))


def _per_channel(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2])
