"""Convolutions of many tasks in the native CPU code: the three products, nothing checked here.

What comes out lies in memory as [S, T, C, H, W]: to PyTorch's own kernels, which do the rest of a
network, that is one batch [S, T*C, H, W] without a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.backends.operation import FakeTensor, operation

__all__ = ["convolve", "input_gradient", "weight_gradient"]

_Pair = tuple[int, int]
_KERNELS = {torch.float32: "convolve_float32", torch.float64: "convolve_float64"}
_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT = range(3)


@operation(
    "convolve(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation) -> Tensor"
)
def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: _Pair, dilation: _Pair
) -> Tensor:
    """[T, S, C, H, W] * [T, O, C, kh, kw] + [T, O] -> [T, S, O, H', W']"""
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            x.shape[3:], weight.shape[3:], stride, padding, dilation, strict=True
        )
    )
    y = _side_by_side(x, weight.shape[1], height, width)
    _run(_FORWARD, x, y, weight.contiguous(), bias, (*stride, *padding, *dilation))
    return y


@operation(
    "convolve_input_gradient(Tensor grad, Tensor weight, SymInt[] size, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation) -> Tensor"
)
def input_gradient(
    grad: Tensor, weight: Tensor, size: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair
) -> Tensor:
    """[T, S, O, H', W'] and [T, O, C, kh, kw] -> [T, S, C, H, W]"""
    x = _side_by_side(grad, weight.shape[2], *size)
    _run(_INPUT_GRADIENT, x, grad, weight.contiguous(), None, (*stride, *padding, *dilation))
    return x


@operation(
    "convolve_weight_gradient(Tensor grad, Tensor x, SymInt[] kernel, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation) -> Tensor"
)
def weight_gradient(
    grad: Tensor, x: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, dilation: _Pair
) -> Tensor:
    """[T, S, O, H', W'] and [T, S, C, H, W] -> [T, O, C, kh, kw]"""
    weight = grad.new_empty(len(grad), grad.shape[2], x.shape[2], *kernel)
    _run(_WEIGHT_GRADIENT, x, grad, weight, None, (*stride, *padding, *dilation))
    return weight


def _run(
    form: int, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, window: tuple[int, ...]
) -> None:  # fmt: skip
    if type(x) is FakeTensor:
        return
    bias = None if bias is None else bias.resolve_neg().contiguous()
    kernel: Any = getattr(cpu.native, _KERNELS[x.dtype])
    shape = (*x.shape, weight.shape[1], *weight.shape[3:])
    kernel(
        form, shape, window, torch.get_num_threads(),
        (x.data_ptr(), x.stride()), (y.data_ptr(), y.stride()),
        (weight.data_ptr(), weight.stride(0)),
        None if bias is None else (bias.data_ptr(), bias.stride(0)),
    )  # fmt: skip


def _side_by_side(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    tasks, samples = like.shape[:2]
    return cpu.empty((samples, tasks, channels, height, width), like).transpose(0, 1)
