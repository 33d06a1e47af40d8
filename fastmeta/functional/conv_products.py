"""The three products of a convolution with weights of their own for each task, and what runs them.

On a GPU the Triton kernels, on the CPU the native ones, each where it can run. Otherwise it is one
grouped convolution: measured against a convolution a task and against unfold and bmm, that is the
fastest of them where nothing has to be copied into its layout, see `in_channels`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.backends import convolution, cpu, triton, triton_products
from fastmeta.backends.image_layout import in_memory
from fastmeta.functional.layout import in_channels, of_tasks
from fastmeta.functional.precision import PRECISIONS

__all__ = ["Window", "as_one_task", "convolve", "input_gradient", "weight_gradient"]


class Window(NamedTuple):
    """What a convolution is beside its tensors."""

    size: tuple[int, int]  # of the input
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    precision: str

    @property
    def steps(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Stride, padding, dilation."""
        return self.stride, self.padding, self.dilation

    @property
    def output_size(self) -> tuple[int, int]:
        """Of the result: H', W'."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(*self[:5], strict=True)
        )  # fmt: skip
        return height, width


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """[T, S, C, H, W] * [T, O, C, kh, kw] + [T, O] -> [T, S, O, H', W']"""
    x, weight = in_memory(x), in_memory(weight)
    bias = None if bias is None else in_memory(bias)
    if _triton_takes(window, x, weight, bias):
        return triton_products.convolve(
            x, weight, bias, window.stride, window.padding, _kernels_name(window)
        )
    if cpu.takes(x, weight):
        return convolution.convolve(x, weight, bias, *window.steps)
    tasks = len(x)
    rows = None if bias is None else bias.flatten()
    y = F.conv2d(in_channels(x), weight.flatten(0, 1), rows, *window.steps, groups=tasks)
    return of_tasks(y, tasks)


def input_gradient(grad: Tensor, weight: Tensor, window: Window) -> Tensor:
    """[T, S, O, H', W'] and [T, O, C, kh, kw] -> [T, S, C, H, W]"""
    grad, weight = in_memory(grad), in_memory(weight)
    size, stride, padding = window.size, window.stride, window.padding
    if _triton_takes(window, grad, weight):
        return triton_products.convolve_input_gradient(
            grad, weight, size, stride, padding, _kernels_name(window)
        )
    if cpu.takes(grad, weight):
        return convolution.input_gradient(grad, weight, size, *window.steps)
    tasks, samples = grad.shape[:2]
    like = grad.new_empty(1).expand(samples, tasks * weight.shape[2], *size)
    wanted, _, _ = torch.ops.aten.convolution_backward(
        in_channels(grad), like, weight.flatten(0, 1), None, stride, padding,
        window.dilation, False, [0, 0], tasks, [True, False, False],
    )  # fmt: skip
    return of_tasks(wanted, tasks)


def weight_gradient(
    grad: Tensor, x: Tensor, with_bias: bool, window: Window
) -> tuple[Tensor, Tensor | None]:
    """[T, S, O, H', W'] and [T, S, C, H, W] -> [T, O, C, kh, kw], and that of the bias [T, O]"""
    grad, x = in_memory(grad), in_memory(x)
    kernel, stride, padding = window.kernel, window.stride, window.padding
    if _triton_takes(window, grad, x):
        return triton_products.convolve_weight_gradient(
            grad, x, kernel, stride, padding, with_bias, _kernels_name(window)
        )
    of_bias = grad.sum((1, 3, 4)) if with_bias else None
    if cpu.takes(grad, x):
        return convolution.weight_gradient(grad, x, kernel, *window.steps), of_bias
    tasks, outputs = len(x), grad.shape[2]
    like = grad.new_empty(1).expand(tasks * outputs, x.shape[2], *kernel)
    _, wanted, _ = torch.ops.aten.convolution_backward(
        in_channels(grad), in_channels(x), like, None, stride, padding,
        window.dilation, False, [0, 0], tasks, [False, True, False],
    )  # fmt: skip
    return wanted.unflatten(0, (tasks, outputs)), of_bias


def as_one_task(x: Tensor, window: Window) -> tuple[Tensor, bool]:
    """[T, S, ...] as [1, samples, ...], and whether a task's samples lie together in it.

    In the order in which what runs the products lays out its results, so that nothing is copied.
    """
    if _triton_takes(window, x):
        return x.flatten(0, 1).unsqueeze(0), True
    return x.transpose(0, 1).flatten(0, 1).unsqueeze(0), False


def _triton_takes(window: Window, x: Tensor, *others: Tensor | None) -> bool:
    if not triton.takes(x, *others, precision=window.precision):
        return False
    # Within an image the kernels count in 32 bits.
    pixels = max(window.size[0] * window.size[1], window.output_size[0] * window.output_size[1])
    channels = max(z.shape[2] for z in (x, *others) if z is not None and z.dim() > 2)
    if channels * pixels < 2**31 and window.dilation == (1, 1):
        return True
    if window.precision != "fp32":
        raise ValueError(
            f'precision "{window.precision}" is for images of less than 2^31 elements, without '
            "dilation"
        )
    return False


def _kernels_name(window: Window) -> str:
    return PRECISIONS[window.precision]
