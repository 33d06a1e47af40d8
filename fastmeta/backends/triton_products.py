"""Products of linear layers and convolutions in the Triton kernels: nothing checked here."""

from __future__ import annotations

from torch import Tensor

from fastmeta.backends.triton import on_their_device

__all__ = [
    "convolve",
    "convolve_input_gradient",
    "convolve_weight_gradient",
    "linear",
    "linear_weight_gradient",
]

_Pair = tuple[int, int]


@on_their_device
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """[T, S, I] and [T, O, I] and [T, O] -> [T, S, O]"""
    from fastmeta.kernels.linear import product

    return product(x, weight, bias, precision)


@on_their_device
def linear_weight_gradient(
    grad: Tensor, x: Tensor, with_bias: bool, precision: str
) -> tuple[Tensor, Tensor | None]:
    """[T, S, O] and [T, S, I] -> [T, O, I], and that of the bias [T, O]"""
    from fastmeta.kernels.linear import weight_gradient

    return weight_gradient(grad, x, with_bias, precision)


@on_their_device
def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: _Pair, precision: str
) -> Tensor:
    """[T, S, C, H, W] * [T, O, C, kh, kw] + [T, O] -> [T, S, O, H', W']"""
    from fastmeta.kernels.conv2d import convolve as run

    return run(x, weight, bias, stride, padding, precision)


@on_their_device
def convolve_input_gradient(
    grad: Tensor, weight: Tensor, size: _Pair, stride: _Pair, padding: _Pair, precision: str
) -> Tensor:
    """[T, S, O, H', W'] and [T, O, C, kh, kw] -> [T, S, C, H, W]"""
    from fastmeta.kernels.conv2d_input_gradient import input_gradient

    return input_gradient(grad, weight, size, stride, padding, precision)


@on_their_device
def convolve_weight_gradient(
    grad: Tensor, x: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, with_bias: bool,
    precision: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """[T, S, O, H', W'] and [T, S, C, H, W] -> [T, O, C, kh, kw], and that of the bias [T, O]"""
    from fastmeta.kernels.conv2d_weight_gradient import weight_gradient

    return weight_gradient(grad, x, kernel, stride, padding, with_bias, precision)
