"""What a forward under vmap runs on kernels that take all tasks at once, each with its own weights.

Of a convolution with a weight for each task vmap makes one with groups, whose second derivative is
slow in PyTorch, and of a norm one operation after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from fastmeta.functional import norms
from fastmeta.functional.conv2d import conv2d
from fastmeta.functional.conv_transpose2d import conv_transpose2d
from fastmeta.functional.pooling import max_pool2d

__all__ = ["OF_ALL_TASKS"]

_DTYPES = (torch.float32, torch.float64)
Sides = Any  # one number, or one a side


class _OfAllTasks(torch.autograd.Function):
    """(operation, tensors of a task) -> what the operation makes of those of all tasks"""

    @staticmethod
    def forward(operation: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        raise RuntimeError("there are no tasks")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Derivatives are those of the operation, outside of vmap."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, operation: Callable[..., Tensor], *tensors: Any
    ) -> tuple[Tensor, int]:
        x, *others = tensors
        dim, *dims = in_dims[1:]
        x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        others = [t if d is None else t.movedim(d, 0) for t, d in zip(others, dims, strict=True)]
        return operation(x, *others), 0


def _takes(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors of many tasks, or shared by them, of one known dtype."""
    given = [t for t in tensors if t is not None]
    x = given[0]
    levels = [level.key() for level in get_interpreter_stack() or []]
    return (
        levels == [TransformType.Vmap]
        and any(torch._C._functorch.is_batchedtensor(t) for t in given)
        and x.dtype in _DTYPES
        and all(t.dtype is x.dtype and t.device == x.device for t in given)
        and not torch.is_autocast_enabled(x.device.type)
    )


def _pair(sides: Sides) -> tuple[int, int]:
    height, *width = (sides,) if isinstance(sides, int) else sides
    return height, width[0] if width else height


# ---- convolutions --------------------------------------------------------------------------------


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sides = 1,
    padding: Sides = 0, dilation: Sides = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    by_name = isinstance(padding, str)
    if by_name or (input.dim(), weight.dim()) != (4, 4) or not _takes(input, weight, bias):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    window = _pair(stride), _pair(padding), _pair(dilation), groups

    def of_all(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(x, weight, bias, *window)

    return _OfAllTasks.apply(of_all, input, weight, bias)


def _conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sides = 1,
    padding: Sides = 0, dilation: Sides = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    by_name = isinstance(padding, str)
    if by_name or (input.dim(), weight.dim()) != (3, 3) or not _takes(input, weight, bias):
        return torch.conv1d(input, weight, bias, stride, padding, dilation, groups)
    sides = _in_a_row(stride, 1), _in_a_row(padding, 0), _in_a_row(dilation, 1)
    return _conv2d(input.unsqueeze(2), weight.unsqueeze(2), bias, *sides, groups).squeeze(2)


def _in_a_row(side: Sides, height: int) -> tuple[int, int]:
    return height, side if isinstance(side, int) else side[0]


def _conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sides = 1,
    padding: Sides = 0, output_padding: Sides = 0, groups: int = 1, dilation: Sides = 1,
) -> Tensor:  # fmt: skip
    more, steps = _pair(output_padding), _pair(stride)
    fits = groups == 1 and all(m < s for m, s in zip(more, steps, strict=True))
    if not fits or (input.dim(), weight.dim()) != (4, 4) or not _takes(input, weight, bias):
        return torch.conv_transpose2d(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )

    def of_all(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv_transpose2d(x, weight, bias, steps, _pair(padding), more, _pair(dilation))

    return _OfAllTasks.apply(of_all, input, weight, bias)


# ---- norms and pools -----------------------------------------------------------------------------


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if training:
        running_mean = running_var = None
    if not training or input.dim() < 2 or not _takes(input, weight, bias):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

    def of_all(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return norms.batch_norm(x, weight, bias, eps)

    return _OfAllTasks.apply(of_all, input, weight, bias)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if input.dim() < 3 or not _takes(input, weight, bias):
        return F.group_norm(input, num_groups, weight, bias, eps)

    def of_all(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return norms.group_norm(x, num_groups, weight, bias, eps)

    return _OfAllTasks.apply(of_all, input, weight, bias)


def _max_pool2d(
    input: Tensor, kernel_size: Sides, stride: Sides = None, padding: Sides = 0,
    dilation: Sides = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    plain = not ceil_mode and not return_indices and _pair(dilation) == (1, 1)
    if not plain or input.dim() != 4 or not _takes(input):
        given: Any = (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return F.max_pool2d(*given)
    window, steps = _pair(kernel_size), _pair(stride) if stride else None

    def of_all(x: Tensor) -> Tensor:
        return max_pool2d(x, window, steps, _pair(padding))

    return _OfAllTasks.apply(of_all, input)


OF_ALL_TASKS: dict[Any, Callable[..., Any]] = {
    torch.conv1d: _conv1d,
    torch.conv2d: _conv2d,
    torch.conv_transpose2d: _conv_transpose2d,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.max_pool2d: _max_pool2d,
}
