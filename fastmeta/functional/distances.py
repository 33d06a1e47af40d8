"""Distances between the samples of each task and its prototypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastmeta.backends.halves import dtype_of_sums, for_sums
from fastmeta.backends.prototype_kernels import kernels_for
from fastmeta.functional.checks import check_samples
from fastmeta.functional.eager import Function, traced_whole
from fastmeta.functional.transforms import (
    fold_batch,
    refuse_nested_jvp,
    unfold_batch,
)
from fastmeta.words import one_of

__all__ = [
    "METRICS", "check_features", "check_metric", "check_pair", "distance", "pairwise_distance",
    "root", "unit",
]  # fmt: skip

METRICS = ("sqeuclidean", "euclidean", "cosine", "dot")


@traced_whole
def pairwise_distance(x: Tensor, y: Tensor, metric: str = "sqeuclidean") -> Tensor:
    """The distance of each sample of a task to each of its prototypes; the nearer, the smaller.

    Euclidean distances are sums of squared differences, never expanded into products, so that
    features with a large common offset lose nothing.

    Args:
        x: [T, Q, D], floating; half precision is summed in float32.
        y: [T, N, D], or [N, D] shared by all tasks.
        metric: "sqeuclidean" |x - y|^2; "euclidean" |x - y|, with gradient 0 where it is 0;
            "cosine" 1 - x.y / (|x| |y|), which is 1 with gradient 0 for a vector of zeros
                or of denormal numbers;
            "dot" -x.y.

    Returns:
        [T, Q, N], of the dtype of x (float32 for half precision), differentiable to any order.

    Raises:
        ValueError: shapes that do not fit, or an unknown metric.
        TypeError: dtypes or devices that differ.

    Equivalent to::

        y = y.expand(len(x), -1, -1)
        (x[:, :, None] - y[:, None]).square().sum(-1)                   # "sqeuclidean"
        (x[:, :, None] - y[:, None]).norm(dim=-1)                       # "euclidean"
        1 - F.cosine_similarity(x[:, :, None], y[:, None], dim=-1)      # "cosine"
        -x @ y.mT                                                       # "dot"
    """
    check_metric(metric)
    x, y = check_pair("x", x, "y", y)
    return distance(x, y, metric)


def check_metric(metric: str) -> None:
    """ValueError unless there is such a metric."""
    if metric not in METRICS:
        raise ValueError(one_of("metric", metric, METRICS))


def check_pair(x_name: str, x: Tensor, y_name: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """[T, Q, D] and [T, N, D] or [N, D] as [T, Q, D] and [T, N, D], in the precision of sums."""
    y = check_features(x_name, x, y_name, y)
    return for_sums(x), for_sums(y)


def check_features(x_name: str, x: Tensor, y_name: str, y: Tensor) -> Tensor:
    """y as [T, N, D]; TypeError or ValueError unless x [T, Q, D] and y [T, N, D] or [N, D] fit."""
    check_samples(x_name, x, "[T, Q, D]")
    if isinstance(y, Tensor) and y.dim() == 2:
        y = y.expand(len(x), *y.shape)
    check_samples(y_name, y, "[T, N, D]")
    if y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2]:
        raise ValueError(
            f"{x_name} [T, Q, D] and {y_name} [T, N, D] do not fit: {list(x.shape)} and "
            f"{list(y.shape)}"
        )
    if dtype_of_sums(x) is not dtype_of_sums(y) or x.device != y.device:
        raise TypeError(f"{x_name} is {x.dtype} on {x.device}, {y_name} {y.dtype} on {y.device}")
    return y


def distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """`pairwise_distance` of what is known to fit."""
    if metric == "dot":
        return -(x @ y.mT)
    if metric == "cosine":
        return 1 - unit(x) @ unit(y).mT
    squared = _Squared.apply(x, y)
    return squared if metric == "sqeuclidean" else root(squared)


def unit(x: Tensor) -> Tensor:
    """x / |x|, and 0 with gradient 0 for a vector of zeros or of denormal numbers."""
    if x.shape[-1] == 0:  # which has no largest
        return x
    # The scale keeps squares within range. The unit vector does not depend on it.
    scale = x.detach().abs().amax(-1, keepdim=True)
    zero = scale < torch.finfo(x.dtype).tiny  # 1 / scale would not be finite
    x = x / torch.where(zero, 1, scale)
    square = torch.where(zero, 1, x.square().sum(-1, keepdim=True))
    return torch.where(zero, 0, x * square.rsqrt())


def root(square: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


# ---- three sums over differences ---------------------------------------------------------------
# Every derivative of one of the three is made of them and of plain products. Taken directly, they
# do not depend on where the origin is. Native where that can run.

_ELEMENTS = 1 << 22  # of differences that are in memory at a time


def _differences(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """x_q - y_n of some rows of x after others, [T, rows, N, D]."""
    rows = max(1, _ELEMENTS // max(1, y.numel()))
    for begin in range(0, x.shape[1], rows):
        some = slice(begin, begin + rows)
        yield some, x[:, some, None] - y[:, None]


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """[q, n] = |x_q - y_n|^2"""
    if kernels := kernels_for(x, y):
        return kernels.squared(x, y)
    return torch.cat([d.square().sum(-1) for _, d in _differences(x, y)], 1)


def _pull(h: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[q, d] = sum over n of h_qn (x_q - y_n)_d"""
    if kernels := kernels_for(h, x, y):
        return kernels.pull(h, x, y)
    rows = [(h[:, some, None] @ d).squeeze(2) for some, d in _differences(x, y)]
    return torch.cat(rows, 1)


def _project(a: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[q, n] = a_q . (x_q - y_n)"""
    if kernels := kernels_for(a, x, y):
        return kernels.project(a, x, y)
    rows = [(d @ a[:, some, :, None]).squeeze(3) for some, d in _differences(x, y)]
    return torch.cat(rows, 1)


# ---- autograd ----------------------------------------------------------------------------------


class _Squared(Function):
    """(x, y) -> squared distances"""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _squared(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        needs_x, needs_y = ctx.needs_input_grad
        return (
            2 * _Pull.apply(grad, x, y) if needs_x else None,
            2 * _Pull.apply(grad.mT, y, x) if needs_y else None,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dy: Tensor) -> Tensor:
        refuse_nested_jvp()
        x, y = ctx.saved_tensors
        return 2 * (_Project.apply(dx, x, y) + _Project.apply(dy, y, x).mT)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _of_more_tasks(_Squared, info, in_dims, inputs), 0


class _Pull(Function):
    """(h, x, y) -> sums over n of h_qn (x_q - y_n)"""

    @staticmethod
    def forward(h: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _pull(h, x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, x, y = ctx.saved_tensors
        needs_h, needs_x, needs_y = ctx.needs_input_grad
        return (
            _Project.apply(grad, x, y) if needs_h else None,
            h.sum(2, keepdim=True) * grad if needs_x else None,
            -(h.mT @ grad) if needs_y else None,
        )

    @staticmethod
    def jvp(ctx: Any, dh: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
        refuse_nested_jvp()
        h, x, y = ctx.saved_tensors
        return _Pull.apply(dh, x, y) + h.sum(2, keepdim=True) * dx - h @ dy

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _of_more_tasks(_Pull, info, in_dims, inputs), 0


class _Project(Function):
    """(a, x, y) -> a_q . (x_q - y_n)"""

    @staticmethod
    def forward(a: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _project(a, x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, x, y = ctx.saved_tensors
        needs_a, needs_x, needs_y = ctx.needs_input_grad
        return (
            _Pull.apply(grad, x, y) if needs_a else None,
            grad.sum(2, keepdim=True) * a if needs_x else None,
            -(grad.mT @ a) if needs_y else None,
        )

    @staticmethod
    def jvp(ctx: Any, da: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
        refuse_nested_jvp()
        a, x, y = ctx.saved_tensors
        return _Project.apply(da, x, y) + (a * dx).sum(2, keepdim=True) - a @ dy.mT

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _of_more_tasks(_Project, info, in_dims, inputs), 0


def _of_more_tasks(function: Any, info: Any, in_dims: Any, inputs: tuple[Any, ...]) -> Tensor:
    folded = fold_batch(info.batch_size, in_dims, inputs)
    return unfold_batch(info.batch_size, function.apply(*folded))
