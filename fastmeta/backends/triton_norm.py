"""Norm of channels, with activation and max-pool, in the Triton kernels: nothing checked here.

The activation is max(z, slope * z), 0 <= slope <= 1: relu with 0, none with 1. The pool takes
`pool` x `pool` pixels, without overlap; 1 is none. Channels lie in memory as those of x do.
"""

from __future__ import annotations

from torch import Tensor

from fastmeta.backends import triton
from fastmeta.backends.operation import operation

__all__ = ["backward", "forward", "second_backward", "takes"]

_MOST = 2**31 - 1  # pixels of a task, and programs in a dimension of the grid


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels are to run on x [T, S, C, ...] and what belongs to it.

    Raises:
        ValueError: the backend "triton" is demanded and cannot run this, with the reason.
    """
    if not triton.takes(x, *others):
        return False
    tasks, _, channels = x.shape[:3]
    pixels = x[0, :, 0].numel()
    # Pixels are counted in 32 bits, those of a last tile too.
    return pixels <= _MOST // 2 and tasks * channels <= _MOST


@operation(
    "triton_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, float slope, int pool) "
    "-> (Tensor, Tensor, Tensor)"
)
@triton.on_their_device
def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """[T, S, C, H, W] and [T, C] twice -> [T, S, C, H', W'], mean and 1 / deviation [T, C]."""
    from fastmeta.kernels.norm_forward import norm_forward

    return norm_forward(x, weight, bias, eps, slope, pool)


@operation(
    "triton_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor rstd, float slope, int pool) -> (Tensor, Tensor, Tensor)"
)
@triton.on_their_device
def backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, slope: float, pool: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for x, weight and bias, from that for what `forward` returns."""
    from fastmeta.kernels.norm_gradient import norm_gradient

    return norm_gradient(grad, x, weight, bias, mean, rstd, slope, pool)


@operation(
    "triton_norm_second_backward(Tensor[] grads, Tensor grad, Tensor x, Tensor? weight, "
    "Tensor? bias, Tensor mean, Tensor rstd, float slope, int pool) -> (Tensor, Tensor, Tensor)"
)
@triton.on_their_device
def second_backward(
    grads: tuple[Tensor, Tensor, Tensor], grad: Tensor, x: Tensor, weight: Tensor | None,
    bias: Tensor | None, mean: Tensor, rstd: Tensor, slope: float, pool: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients for grad, x and weight, from those for what `backward` returns."""
    from fastmeta.kernels.norm_gradient import norm_second

    return norm_second(*grads, grad, x, weight, bias, mean, rstd, slope, pool)
