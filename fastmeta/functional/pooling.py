"""Pooling and flattening of many tasks' images at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.backends import cpu, pools
from fastmeta.functional.checks import check_samples, pair
from fastmeta.functional.eager import Function, traced_whole
from fastmeta.functional.layout import in_channels, of_tasks
from fastmeta.functional.transforms import (
    fold_batch,
    refuse_nested_jvp,
    unfold_batch,
)

__all__ = [
    "adaptive_avg_pool2d", "avg_pool2d", "flatten", "gather", "largest", "max_pool2d", "scatter",
    "window_of",
]  # fmt: skip

Pair = int | Sequence[int]


@traced_whole
def max_pool2d(
    x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0
) -> Tensor:
    """The largest pixel of each window.

    Args:
        x: [T, S, C, H, W], floating.
        kernel_size: one number, or two for height and width.
        stride: likewise; None: `kernel_size`.
        padding: likewise, at most half of the kernel; padding is never the largest.

    Returns:
        [T, S, C, H', W'], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes or sizes that do not fit.

    Equivalent to::

        torch.stack([F.max_pool2d(x[t], kernel_size, stride, padding) for t in range(T)])
    """
    window = _pool_window(x, kernel_size, stride, padding)
    return _MaxPool.apply(x, window)[0]


def avg_pool2d(
    x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0
) -> Tensor:
    """The mean of each window, where padding counts as zeros.

    Args:
        x: [T, S, C, H, W], floating.
        kernel_size: one number, or two for height and width.
        stride: likewise; None: `kernel_size`.
        padding: likewise, at most half of the kernel.

    Returns:
        [T, S, C, H', W'], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes or sizes that do not fit.

    Equivalent to::

        torch.stack([F.avg_pool2d(x[t], kernel_size, stride, padding) for t in range(T)])
    """
    window = _pool_window(x, kernel_size, stride, padding)
    return of_tasks(F.avg_pool2d(in_channels(x), *window), len(x))


def adaptive_avg_pool2d(x: Tensor, output_size: Pair) -> Tensor:
    """The mean of each of `output_size` parts of the image; 1 for the mean over all of it.

    Args:
        x: [T, S, C, H, W], floating.
        output_size: one number, or two for height and width.

    Returns:
        [T, S, C, *output_size], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes or sizes that do not fit.

    Equivalent to::

        torch.stack([F.adaptive_avg_pool2d(x[t], output_size) for t in range(T)])
    """
    _check_images(x)
    size = pair("output_size", output_size, 1)
    if size == (1, 1):
        return x.mean((3, 4), keepdim=True)
    return of_tasks(F.adaptive_avg_pool2d(in_channels(x), size), len(x))


def flatten(x: Tensor) -> Tensor:
    """All that a sample has in one row.

    Args:
        x: [T, S, ...].

    Returns:
        [T, S, D].

    Raises:
        ValueError, TypeError: x is not as above.

    Equivalent to::

        torch.stack([x[t].flatten(1) for t in range(T)])
    """
    check_samples("x", x, "[T, S, ...]")
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


class _Pool(NamedTuple):
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def _pool_window(x: Tensor, kernel_size: Pair, stride: Pair | None, padding: Pair) -> _Pool:
    _check_images(x)
    kernel = pair("kernel_size", kernel_size, 1)
    window = _Pool(
        kernel, kernel if stride is None else pair("stride", stride, 1), pair("padding", padding, 0)
    )
    if any(2 * p > k for p, k in zip(window.padding, kernel, strict=True)):
        raise ValueError(f"padding {list(window.padding)} is more than half of {list(kernel)}")
    sizes = zip(x.shape[-2:], window.padding, kernel, strict=True)
    if any(n + 2 * p < k for n, p, k in sizes):
        raise ValueError(
            f"a kernel of {list(kernel)} with padding {list(window.padding)} does not fit into "
            f"images of {list(x.shape[-2:])}"
        )
    return window


def _check_images(x: Tensor) -> None:
    check_samples("x", x, "[T, S, C, H, W]")
    if x.numel() == 0:
        raise ValueError(f"x is empty: {list(x.shape)} has no channels or no pixels")


# ---- the max-pool's three passes ---------------------------------------------------------------


def largest(x: Tensor, window: _Pool) -> tuple[Tensor, Tensor]:
    """The largest pixel of each window, and its place.

    A place is a number in the image, int64; or, of the native kernels, one in the window, which has
    the dtype of x.
    """
    if window == window_of(2) and pools.pays(x) and cpu.takes(x):
        return pools.largest(x)
    images = in_channels(x)
    if x.device.type == "cpu":
        # PyTorch's loop over channels is vectorised: 2 to 10 times as fast, copies included.
        images = images.contiguous(memory_format=torch.channels_last)
    y, at = F.max_pool2d(images, *window, return_indices=True)
    return of_tasks(y.contiguous(), len(x)), of_tasks(at.contiguous(), len(x))


def _gather(x: Tensor, at: Tensor) -> Tensor:
    """The pixels that were the largest."""
    if at.is_floating_point():
        if cpu.takes(x, at):
            return pools.gather(x, at)
        at = _in_image(at, x.shape[4])
    images, places = in_channels(x), in_channels(at)
    y = images.flatten(2).gather(2, places.flatten(2)).view(places.shape)
    return of_tasks(y, len(x))


def _scatter(y: Tensor, at: Tensor, window: _Pool, size: tuple[int, int]) -> Tensor:
    """[T, S, C, *size]: at each pixel the sum over the windows whose largest it was."""
    if at.is_floating_point():
        if cpu.takes(y, at):
            return pools.scatter(y, at, size)
        at = _in_image(at, size[1])
    values = in_channels(y)
    like = y.new_empty(1).expand(*values.shape[:2], *size)
    x = torch.ops.aten.max_pool2d_with_indices_backward(
        values, like, *window, [1, 1], False, in_channels(at)
    )
    return of_tasks(x, len(y))


def _in_image(at: Tensor, width: int) -> Tensor:
    """Places in windows of 2 x 2 as numbers in an image."""
    line, column = (torch.arange(n, device=at.device) for n in at.shape[3:])
    k = at.long()
    return (2 * line[:, None] + k // 2) * width + 2 * column + k % 2


def window_of(size: int) -> _Pool:
    """Square windows side by side."""
    return _Pool((size, size), (size, size), (0, 0))


def gather(x: Tensor, at: Tensor, window: _Pool) -> Tensor:
    """The pixels of x at the places that `largest` found, differentiable to any order."""
    return _Gather.apply(x, at, window)


def scatter(y: Tensor, at: Tensor, window: _Pool, size: tuple[int, int]) -> Tensor:
    """Images of `size` with y at these places, differentiable to any order."""
    return _Scatter.apply(y, at, window, size)


# ---- autograd: scatter and gather are linear, and each the other's transpose -------------------


class _MaxPool(Function):
    """x -> (y, at)"""

    @staticmethod
    def forward(x: Tensor, window: _Pool) -> tuple[Tensor, Tensor]:
        return largest(x, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.window = inputs
        _, at = output
        ctx.size = (x.shape[3], x.shape[4])
        ctx.mark_non_differentiable(at)
        ctx.set_materialize_grads(False)  # no zeros for the places
        ctx.save_for_backward(at)
        ctx.save_for_forward(at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        (at,) = ctx.saved_tensors
        return None if grad is None else _Scatter.apply(grad, at, ctx.window, ctx.size), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> tuple[Tensor, None]:
        refuse_nested_jvp()
        (at,) = ctx.saved_tensors
        return _Gather.apply(dx, at, ctx.window), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, window: _Pool) -> tuple[tuple[Tensor, ...], int]:
        outputs = _MaxPool.apply(*fold_batch(info.batch_size, in_dims, [x]), window)
        return tuple(unfold_batch(info.batch_size, out) for out in outputs), 0


class _Gather(Function):
    """(x, at) -> the pixels of x at these places"""

    @staticmethod
    def forward(x: Tensor, at: Tensor, window: _Pool) -> Tensor:
        return _gather(x, at)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, at, ctx.window = inputs
        ctx.size = (x.shape[3], x.shape[4])
        ctx.save_for_backward(at)
        ctx.save_for_forward(at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (at,) = ctx.saved_tensors
        return _Scatter.apply(grad, at, ctx.window, ctx.size), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        refuse_nested_jvp()
        (at,) = ctx.saved_tensors
        return _Gather.apply(dx, at, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, window = inputs
        y = _Gather.apply(*fold_batch(info.batch_size, in_dims, tensors), window)
        return unfold_batch(info.batch_size, y), 0


class _Scatter(Function):
    """(y, at) -> images of `size` with y at these places"""

    @staticmethod
    def forward(y: Tensor, at: Tensor, window: _Pool, size: tuple[int, int]) -> Tensor:
        return _scatter(y, at, window, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, at, ctx.window, ctx.size = inputs
        ctx.save_for_backward(at)
        ctx.save_for_forward(at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (at,) = ctx.saved_tensors
        return _Gather.apply(grad, at, ctx.window), None, None, None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, *_: None) -> Tensor:
        refuse_nested_jvp()
        (at,) = ctx.saved_tensors
        return _Scatter.apply(dy, at, ctx.window, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, window, size = inputs
        x = _Scatter.apply(*fold_batch(info.batch_size, in_dims, tensors), window, size)
        return unfold_batch(info.batch_size, x), 0
