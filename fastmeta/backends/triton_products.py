"""Products of linear layers and convolutions in the Triton kernels: nothing checked here."""

from __future__ import annotations

from torch import Tensor

from fastmeta.backends.operation import operation
from fastmeta.backends.triton import on_their_device

__all__ = [
    "convolve",
    "convolve_input_gradient",
    "convolve_weight_gradient",
    "linear",
    "linear_weight_gradient",
]

_Pair = tuple[int, int]


@operation(
    "triton_linear(Tensor x, Tensor weight, Tensor? bias, str precision) -> Tensor"
)
@on_their_device
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """[T, S, I] and [T, O, I] and [T, O] -> [T, S, O]"""
    from fastmeta.kernels.linear import product

    return product(x, weight, bias, precision)


def linear_weight_gradient(
    grad: Tensor, x: Tensor, with_bias: bool, precision: str
) -> tuple[Tensor, Tensor | None]:
    """[T, S, O] and [T, S, I] -> [T, O, I], and that of the bias [T, O]"""
    return _two(_linear_gradients(grad, x, with_bias, precision))


@operation(
    "triton_linear_weight_gradient(Tensor grad, Tensor x, bool with_bias, str precision) "
    "-> Tensor[]"
)
@on_their_device
def _linear_gradients(grad: Tensor, x: Tensor, with_bias: bool, precision: str) -> list[Tensor]:
    from fastmeta.kernels.linear import weight_gradient

    return _present(weight_gradient(grad, x, with_bias, precision))


@operation(
    "triton_convolve(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
    "str precision) -> Tensor"
)
@on_their_device
def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: _Pair, precision: str
) -> Tensor:
    """[T, S, C, H, W] * [T, O, C, kh, kw] + [T, O] -> [T, S, O, H', W']"""
    from fastmeta.kernels.conv2d import convolve as run

    return run(x, weight, bias, stride, padding, precision)


@operation(
    "triton_convolve_input_gradient(Tensor grad, Tensor weight, SymInt[] size, SymInt[] stride, "
    "SymInt[] padding, str precision) -> Tensor"
)
@on_their_device
def convolve_input_gradient(
    grad: Tensor, weight: Tensor, size: _Pair, stride: _Pair, padding: _Pair, precision: str
) -> Tensor:
    """[T, S, O, H', W'] and [T, O, C, kh, kw] -> [T, S, C, H, W]"""
    from fastmeta.kernels.conv2d_input_gradient import input_gradient

    return input_gradient(grad, weight, size, stride, padding, precision)


def convolve_weight_gradient(
    grad: Tensor, x: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, with_bias: bool,
    precision: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """[T, S, O, H', W'] and [T, S, C, H, W] -> [T, O, C, kh, kw], and that of the bias [T, O]"""
    return _two(_convolve_gradients(grad, x, kernel, stride, padding, with_bias, precision))


@operation(
    "triton_convolve_weight_gradient(Tensor grad, Tensor x, SymInt[] kernel, SymInt[] stride, "
    "SymInt[] padding, bool with_bias, str precision) -> Tensor[]"
)
@on_their_device
def _convolve_gradients(
    grad: Tensor, x: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, with_bias: bool,
    precision: str,
) -> list[Tensor]:  # fmt: skip
    from fastmeta.kernels.conv2d_weight_gradient import weight_gradient

    return _present(weight_gradient(grad, x, kernel, stride, padding, with_bias, precision))


# An operator returns a tensor or a list of them, never None.


def _present(gradients: tuple[Tensor, Tensor | None]) -> list[Tensor]:
    return [gradient for gradient in gradients if gradient is not None]


def _two(gradients: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    return gradients[0], gradients[1] if len(gradients) > 1 else None
