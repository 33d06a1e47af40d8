"""Convolution of images with weights of their own for each task.

The convolution is bilinear, and so are its gradient for the input and its gradient for the weight;
each derivative of one of the three is another of them. So three products give every order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmeta.functional.checks import check_parameter, check_samples, pair
from fastmeta.functional.conv_products import (
    Window,
    as_one_task,
    convolve,
    input_gradient,
    weight_gradient,
)
from fastmeta.functional.eager import Function, traced_whole
from fastmeta.functional.precision import product_precision
from fastmeta.functional.transforms import (
    fold_batch,
    refuse_nested_jvp,
    unfold_batch,
)
from fastmeta.words import kind_of

__all__ = ["conv2d", "conv2d_input_gradient", "conv2d_weight_gradient"]

Pair = int | Sequence[int]


@traced_whole
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0,
    dilation: Pair = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolve each task's images with its own weights.

    Args:
        x: [T, S, C, H, W], floating.
        weight: [T, O, C / groups, kh, kw], or [O, C / groups, kh, kw] shared by all tasks.
        bias: [T, O] or [O].
        stride, padding, dilation: one number, or two for height and width; padding is of zeros.
        groups: of as many neighbouring channels each, of x and of the result.

    Returns:
        [T, S, O, H', W'], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([F.conv2d(x[t], weight[t], bias[t], stride, padding, dilation, groups)
                     for t in range(T)])
    """
    check_samples("x", x, "[T, S, C, H, W]")
    outputs, kernel = _outputs_and_kernel(weight, "[T, O, C, kh, kw] or [O, C, kh, kw]", (4, 5))
    _check_groups(groups, outputs, x)
    check_parameter("weight", weight, (outputs, x.shape[2] // groups, *kernel), x)
    if bias is not None:
        check_parameter("bias", bias, (outputs,), x)
    window = _window(x.shape[-2:], kernel, stride, padding, dilation)
    if groups > 1:
        return _in_groups(x, weight, bias, window, groups)
    spanned = _spanned(x, window)
    if spanned is not None:
        return conv2d(*_as_channels(x, weight, spanned), bias, stride, padding, dilation)
    if weight.dim() == 4:
        return _with_one_weight(x, weight, bias, window)
    return _Convolve.apply(x, weight, None if bias is None else bias.expand(len(x), -1), window)


@traced_whole
def conv2d_input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: Pair = 1, padding: Pair = 0,
    dilation: Pair = 1,
) -> Tensor:  # fmt: skip
    """What a gradient for the output of `conv2d` is for its input.

    Args:
        grad: [T, S, O, H', W'], floating.
        weight: [T, O, C, kh, kw].
        size: (H, W) of the input.
        stride, padding, dilation: of the convolution.

    Returns:
        [T, S, C, H, W], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([torch.nn.grad.conv2d_input((S, C, *size), weight[t], grad[t], stride, padding,
                                                dilation) for t in range(T)])
    """
    check_samples("grad", grad, "[T, S, O, H', W']")
    outputs, kernel = _outputs_and_kernel(weight, "[T, O, C, kh, kw]", (5,))
    window = _window(pair("size", size, 1), kernel, stride, padding, dilation)
    _check_gradient(grad, window, outputs)
    _check_like(grad, "weight", weight, (len(grad), *weight.shape[1:]))
    return _InputGradient.apply(grad, weight, window)


@traced_whole
def conv2d_weight_gradient(
    grad: Tensor, x: Tensor, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0,
    dilation: Pair = 1,
) -> Tensor:  # fmt: skip
    """What a gradient for the output of `conv2d` is for its weight.

    Args:
        grad: [T, S, O, H', W'], floating.
        x: [T, S, C, H, W].
        kernel_size: (kh, kw) of the weight, or one number for both.
        stride, padding, dilation: of the convolution.

    Returns:
        [T, O, C, kh, kw], differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([torch.nn.grad.conv2d_weight(x[t], (O, C, kh, kw), grad[t], stride, padding,
                                                 dilation) for t in range(T)])
    """
    check_samples("grad", grad, "[T, S, O, H', W']")
    check_samples("x", x, "[T, S, C, H, W]")
    kernel = pair("kernel_size", kernel_size, 1)
    window = _window(x.shape[-2:], kernel, stride, padding, dilation)
    _check_gradient(grad, window, grad.shape[2])
    _check_like(grad, "x", x, (*grad.shape[:2], *x.shape[2:]))
    return _WeightGradient.apply(grad, x, False, window)[0]


# ---- autograd ----------------------------------------------------------------------------------


class _Convolve(Function):
    """(x, weight, bias) -> y"""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        return convolve(x, weight, bias, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.window = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_x = _InputGradient.apply(grad, weight, ctx.window) if needs_x else None
        of_weight = of_bias = None
        if needs_weight:
            of_weight, of_bias = _WeightGradient.apply(grad, x, needs_bias, ctx.window)
        elif needs_bias:
            of_bias = grad.sum((1, 3, 4))
        return of_x, of_weight, of_bias, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dweight: Tensor, dbias: Tensor | None, _: None) -> Tensor:
        refuse_nested_jvp()
        x, weight = ctx.saved_tensors
        through_x = _Convolve.apply(dx, weight, dbias, ctx.window)
        return through_x + _Convolve.apply(x, dweight, None, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, window = inputs
        y = _Convolve.apply(*fold_batch(info.batch_size, in_dims, tensors), window)
        return unfold_batch(info.batch_size, y), 0


class _InputGradient(Function):
    """(gradient for y, weight) -> gradient for x"""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, window: Window) -> Tensor:
        return input_gradient(grad, weight, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, weight, ctx.window = inputs
        ctx.save_for_backward(grad, weight)
        ctx.save_for_forward(grad, weight)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        needs_grad, needs_weight, _ = ctx.needs_input_grad
        return (
            _Convolve.apply(grad_x, weight, None, ctx.window) if needs_grad else None,
            _WeightGradient.apply(grad, grad_x, False, ctx.window)[0] if needs_weight else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, dgrad: Tensor, dweight: Tensor, _: None) -> Tensor:
        refuse_nested_jvp()
        grad, weight = ctx.saved_tensors
        through_grad = _InputGradient.apply(dgrad, weight, ctx.window)
        return through_grad + _InputGradient.apply(grad, dweight, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, window = inputs
        grad_x = _InputGradient.apply(*fold_batch(info.batch_size, in_dims, tensors), window)
        return unfold_batch(info.batch_size, grad_x), 0


class _WeightGradient(Function):
    """(gradient for y, x) -> gradients for weight and bias, for the bias None unless asked for"""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, with_bias: bool, window: Window
    ) -> tuple[Tensor, Tensor | None]:
        return weight_gradient(grad, x, with_bias, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, x, ctx.with_bias, ctx.window = inputs
        ctx.save_for_backward(grad, x)
        ctx.save_for_forward(grad, x)

    @staticmethod
    def backward(
        ctx: Any, grad_weight: Tensor, grad_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        needs_grad, needs_x, _, _ = ctx.needs_input_grad
        return (
            _Convolve.apply(x, grad_weight, grad_bias, ctx.window) if needs_grad else None,
            _InputGradient.apply(grad, grad_weight, ctx.window) if needs_x else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, dgrad: Tensor, dx: Tensor, _: None, __: None) -> tuple[Tensor, Tensor | None]:
        refuse_nested_jvp()
        grad, x = ctx.saved_tensors
        of_weight, of_bias = _WeightGradient.apply(dgrad, x, ctx.with_bias, ctx.window)
        return of_weight + _WeightGradient.apply(grad, dx, False, ctx.window)[0], of_bias

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, with_bias, window = inputs
        folded = fold_batch(info.batch_size, in_dims, tensors)
        of_weight, of_bias = _WeightGradient.apply(*folded, with_bias, window)
        unfolded = unfold_batch(info.batch_size, of_weight)
        if of_bias is None:
            return (unfolded, None), (0, None)
        return (unfolded, unfold_batch(info.batch_size, of_bias)), (0, 0)


def _in_groups(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """A group of a task's channels is to the products a task."""

    def each(z: Tensor, dim: int) -> Tensor:
        return z.unflatten(dim, (groups, -1)).movedim(dim, 1).flatten(0, 1)

    tasks = len(x)
    if weight.dim() == 4:
        weight = weight.expand(tasks, *weight.shape)
    own = None if bias is None else each(bias.expand(tasks, -1), 1)
    y = _Convolve.apply(each(x, 2), each(weight, 1), own, window)
    return y.unflatten(0, (tasks, groups)).movedim(1, 2).flatten(2, 3)


def _spanned(x: Tensor, window: Window) -> int | None:
    """The side of images of few channels that a kernel takes as a whole: 0, the height, 1 or None.

    Of a channel alone a vector of the native kernels has one number: to gradients for words, [1, L,
    D] under kernels [k, D], 30 times the work.
    """
    if x.device.type != "cpu" or x.shape[2] >= _FEW_CHANNELS:
        return None
    for side in (1, 0):
        if window.kernel[side] == window.size[side] > 1 and window.padding[side] == 0:
            return side
    return None


_FEW_CHANNELS = 16  # of a vector of float32 at most


def _as_channels(x: Tensor, weight: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Images and kernels whose channels are those of each pixel of a side."""

    def moved(z: Tensor) -> Tensor:
        return z.movedim(side - 2, -2).flatten(-3, -2).unsqueeze(side - 2)

    return moved(x), moved(weight)


def _with_one_weight(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """One weight for all tasks: to the products, one task that has all the samples."""
    rows, together = as_one_task(x, window)
    shared_bias = bias.unsqueeze(0) if bias is not None and bias.dim() == 1 else None
    y = _Convolve.apply(rows, weight.unsqueeze(0), shared_bias, window)[0]
    if together:
        y = y.unflatten(0, (len(x), -1))
    else:
        y = y.unflatten(0, (-1, len(x))).transpose(0, 1)
    if bias is None or shared_bias is not None:
        return y
    return y + bias[:, None, :, None, None]


# ---- checks ------------------------------------------------------------------------------------


def _outputs_and_kernel(
    weight: Tensor, form: str, ranks: tuple[int, ...]
) -> tuple[int, tuple[int, int]]:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor {form}, not {kind_of(weight)}")
    if weight.dim() not in ranks or min(weight.shape[-4:]) == 0:
        raise ValueError(f"weight must be {form}, not {list(weight.shape)}")
    outputs, _, height, width = weight.shape[-4:]
    return outputs, (height, width)


def _window(
    size: Sequence[int], kernel: tuple[int, int], stride: Pair, padding: Pair, dilation: Pair
) -> Window:
    height, width = size
    steps, borders = pair("stride", stride, 1), pair("padding", padding, 0)
    apart = pair("dilation", dilation, 1)
    window = Window((height, width), kernel, steps, borders, apart, product_precision())
    if min(window.output_size) < 1:
        dilated = f" and dilation {list(apart)}" if apart != (1, 1) else ""
        raise ValueError(
            f"a kernel of {list(kernel)} with padding {list(borders)}{dilated} does not fit into "
            f"images of {list(size)}"
        )
    return window


def _check_groups(groups: object, outputs: int, x: Tensor) -> None:
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"groups must be a whole number, not {kind_of(groups)}")
    if groups < 1 or outputs % groups or x.shape[2] % groups:
        raise ValueError(
            f"groups must divide the channels of x {list(x.shape)} and the {outputs} outputs of "
            f"the weight, not {groups}"
        )


def _check_gradient(grad: Tensor, window: Window, outputs: int) -> None:
    wanted = [outputs, *window.output_size]
    if list(grad.shape[2:]) != wanted:
        raise ValueError(
            f"grad must be [T, S, {', '.join(map(str, wanted))}] for images of "
            f"{list(window.size)} and a kernel of {list(window.kernel)}, not {list(grad.shape)}"
        )


def _check_like(grad: Tensor, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if list(tensor.shape) != [*shape]:
        raise ValueError(
            f"{name} must be {[*shape]} for grad {list(grad.shape)}, not {list(tensor.shape)}"
        )
    if tensor.dtype is not grad.dtype or tensor.device != grad.device:
        raise TypeError(
            f"{name} is {tensor.dtype} on {tensor.device}, grad {grad.dtype} on {grad.device}"
        )
