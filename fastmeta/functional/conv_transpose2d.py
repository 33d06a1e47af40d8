"""Transposed convolution of images with weights of their own for each task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmeta.functional.checks import check_parameter, check_samples, pair
from fastmeta.functional.conv2d import conv2d_input_gradient
from fastmeta.functional.eager import traced_whole
from fastmeta.words import kind_of

__all__ = ["conv_transpose2d"]

Pair = int | Sequence[int]


@traced_whole
def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0,
    output_padding: Pair = 0, dilation: Pair = 1,
) -> Tensor:  # fmt: skip
    """What is to images as a gradient for the output of `conv2d` is to one for its input.

    Args:
        x: [T, S, C, H, W], floating.
        weight: [T, C, O, kh, kw], or [C, O, kh, kw] shared by all tasks.
        bias: [T, O] or [O].
        stride, padding, dilation: one number, or two for height and width.
        output_padding: rows and columns more, of zeros and the bias; less than the stride.

    Returns:
        [T, S, O, H', W'] with H' = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding
        + 1, differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([F.conv_transpose2d(x[t], weight[t], bias[t], stride, padding, output_padding,
                                        dilation=dilation) for t in range(T)])
    """
    check_samples("x", x, "[T, S, C, H, W]")
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor [T, C, O, kh, kw], not {kind_of(weight)}")
    if weight.dim() not in (4, 5) or min(weight.shape[-4:]) == 0:
        raise ValueError(
            f"weight must be [T, C, O, kh, kw] or [C, O, kh, kw], not {list(weight.shape)}"
        )
    outputs, *kernel = weight.shape[-3:]
    check_parameter("weight", weight, (x.shape[2], outputs, *kernel), x)
    if bias is not None:
        check_parameter("bias", bias, (outputs,), x)
    steps, borders = pair("stride", stride, 1), pair("padding", padding, 0)
    apart, more = pair("dilation", dilation, 1), pair("output_padding", output_padding, 0)
    if any(m >= s for m, s in zip(more, steps, strict=True)):
        raise ValueError(f"output_padding {list(more)} must be less than stride {list(steps)}")
    sides = zip(x.shape[3:], kernel, steps, borders, apart, more, strict=True)
    size = [(n - 1) * s - 2 * p + d * (k - 1) + m + 1 for n, k, s, p, d, m in sides]
    if min(size) < 1:
        raise ValueError(f"padding {list(borders)} leaves nothing of images {list(x.shape[3:])}")
    own = weight.expand(len(x), *weight.shape[-4:])
    y = conv2d_input_gradient(x, own, size, steps, borders, apart)
    return y if bias is None else y + bias.expand(len(x), -1)[:, None, :, None, None]
