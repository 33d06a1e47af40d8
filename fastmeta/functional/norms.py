"""Norms of many tasks at once, each with the statistics of its own task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.functional.checks import check_parameter, check_samples, count_of
from fastmeta.functional.eager import traced_whole
from fastmeta.functional.normalize import normalize

__all__ = [
    "batch_norm", "check_batch", "group_norm", "instance_norm", "layer_norm", "per_task",
]  # fmt: skip


@traced_whole
def batch_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise each channel by its mean and variance over the task's samples and pixels.

    Always with the statistics of the batch, as MAML does: Ioffe, Szegedy 2015, algorithm 1.

    Args:
        x: [T, S, C, ...], floating, with more than one value a channel.
        weight, bias: [T, C], or [C] shared by all tasks, or None for 1 and 0.
        eps: added to the variance.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([F.batch_norm(x[t], None, None, weight[t], bias[t], training=True, eps=eps)
                     for t in range(T)])
    """
    check_batch(x, weight, bias)
    pixels = x.unsqueeze(3) if x.dim() == 3 else x.flatten(3)
    y = normalize(pixels, per_task(weight, x), per_task(bias, x), eps)
    return y.reshape(x.shape)


def check_batch(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """TypeError or ValueError unless `batch_norm` takes these."""
    check_samples("x", x, "[T, S, C, ...]")
    channels = x.shape[2]
    _check_affine(weight, bias, (channels,), x)
    if channels == 0 or x.numel() // (len(x) * channels) < 2:
        raise ValueError(f"x {list(x.shape)} needs more than one value a channel, T and C aside")


@traced_whole
def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each sample over its last dimensions (Ba, Kiros, Hinton 2016, equation 3).

    Args:
        x: [T, S, ..., *normalized_shape], floating.
        normalized_shape: of the last dimensions, which share a mean and a variance.
        weight, bias: [T, *normalized_shape], or [*normalized_shape] shared by all tasks, or None
            for 1 and 0.
        eps: added to the variance.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([F.layer_norm(x[t], normalized_shape, weight[t], bias[t], eps)
                     for t in range(T)])
    """
    check_samples("x", x, "[T, S, ...]")
    shape = [normalized_shape] if isinstance(normalized_shape, int) else [*normalized_shape]
    if not shape or list(x.shape[2:][-len(shape) :]) != shape or 0 in shape:
        raise ValueError(f"x must end in normalized_shape {shape}, not {list(x.shape)}")
    _check_affine(weight, bias, shape, x)
    first = x.dim() - len(shape)
    y = _normalize_rows(x, first, eps)
    return _scale_and_shift(y, weight, bias, rank=len(shape), before=first - 1)


@traced_whole
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each sample over groups of channels and all pixels (Wu, He 2018, section 3.1).

    Args:
        x: [T, S, C, ...], floating.
        num_groups: divides C.
        weight, bias: [T, C], or [C] shared by all tasks, or None for 1 and 0.
        eps: added to the variance.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([F.group_norm(x[t], num_groups, weight[t], bias[t], eps) for t in range(T)])
    """
    check_samples("x", x, "[T, S, C, ...]")
    channels = x.shape[2]
    if channels == 0 or channels % count_of("num_groups", num_groups):
        raise ValueError(f"num_groups={num_groups} does not divide the channels of {list(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x {list(x.shape)} has no pixels")
    _check_affine(weight, bias, (channels,), x)
    y = _normalize_rows(x.unflatten(2, (num_groups, -1)), 3, eps).flatten(2, 3)
    return _scale_and_shift(y, weight, bias, rank=1, before=1, after=x.dim() - 3)


@traced_whole
def instance_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise each channel of each sample over its pixels (Ulyanov et al. 2016).

    Args:
        x: [T, S, C, L...], floating, with more than one pixel.
        weight, bias: [T, C], or [C] shared by all tasks, or None for 1 and 0.
        eps: added to the variance.

    Returns:
        Shaped like x, differentiable to any order.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Equivalent to::

        torch.stack([F.instance_norm(x[t], None, None, weight[t], bias[t], eps=eps)
                     for t in range(T)])
    """
    check_samples("x", x, "[T, S, C, L, ...]")
    if x.shape[3:].numel() < 2:
        raise ValueError(f"x {list(x.shape)} needs more than one pixel")
    return group_norm(x, x.shape[2], weight, bias, eps)


def _normalize_rows(x: Tensor, first: int, eps: float) -> Tensor:
    """Over the dimensions from `first` on; each of the rest is a channel to `normalize`."""
    # In the order in which the samples lie in memory, where that saves a copy.
    swapped = x.transpose(0, 1).is_contiguous()
    rows = x.transpose(0, 1) if swapped else x
    flat = rows.reshape(1, 1, -1, x.shape[first:].numel())
    y = normalize(flat, None, None, eps).reshape(rows.shape)
    return y.transpose(0, 1) if swapped else y


def _scale_and_shift(
    y: Tensor, weight: Tensor | None, bias: Tensor | None, rank: int, before: int, after: int = 0
) -> Tensor:
    """y * weight + bias, whose own `rank` dimensions have `before` and `after` others around."""
    scale, shift = (_aligned(p, rank, before, after) for p in (weight, bias))
    if scale is None:
        return y if shift is None else y + shift
    return y * scale if shift is None else torch.addcmul(shift, y, scale)


def _aligned(parameter: Tensor | None, rank: int, before: int, after: int) -> Tensor | None:
    if parameter is None:
        return None
    own = parameter.shape[parameter.dim() - rank :]
    return parameter.reshape(-1, *[1] * before, *own, *[1] * after)


def per_task(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """[C] or [T, C] as [T, C]."""
    return None if parameter is None else parameter.expand(len(x), -1)


def _check_affine(
    weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], x: Tensor
) -> None:
    if weight is not None:
        check_parameter("weight", weight, shape, x)
    if bias is not None:
        check_parameter("bias", bias, shape, x)
