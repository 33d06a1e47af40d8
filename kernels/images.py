"""How images and the weights of convolutions lie in memory for the kernels: channels last."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["channels_last", "like_channels_last", "shared_channels_last"]


def channels_last(x: Tensor) -> Tensor:
    """[T, S, C, H, W] whose images are [H, W, C] in memory; a copy only where they are not."""
    _, _, C, H, W = x.shape
    wanted = (1, W * C, C)
    sizes_and_strides = zip(x.shape[2:], x.stride()[2:], wanted, strict=True)
    if all(size == 1 or stride == right for size, stride, right in sizes_and_strides):
        return x
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def shared_channels_last(weight: Tensor) -> tuple[Tensor, int]:
    """[T, O, C, kh, kw] as `channels_last`, dense in O too, and its stride over the tasks.

    That is 0 where all tasks share one weight, which is then copied once.
    """
    if weight.shape[0] > 1 and weight.stride(0) == 0:
        return shared_channels_last(weight[:1])[0], 0
    _, O, C, kh, kw = weight.shape
    dense = channels_last(weight)
    if O > 1 and dense.stride(1) != C * kh * kw:
        dense = weight.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return dense, dense.stride(0)


def like_channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty [T, S, C, H, W] with its channels last."""
    T, S, C, H, W = shape
    return like.new_empty(T, S, H, W, C).permute(0, 1, 4, 2, 3)
