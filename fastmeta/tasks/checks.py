"""Whether tensors are the samples of T tasks."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from fastmeta.backends.looks import looks
from fastmeta.words import kind_of

__all__ = ["check_forms", "check_rows", "check_samples"]

_sound_forms: set[Hashable] = set()  # looks that passed the checks
_most_forms = 1024


def check_forms(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> None:
    tensors = [support_x, support_y, query_x, query_y]
    form = looks(tensors)  # None where one is no tensor
    if form in _sound_forms:
        return
    check_samples("support", support_x, support_y)
    check_samples("query", query_x, query_y)
    _check_alike("support_x", support_x, "query_x", query_x)
    _check_alike("support_y", support_y, "query_y", query_y)
    if len(_sound_forms) >= _most_forms:
        _sound_forms.clear()
    _sound_forms.add(form)


def _one_of_several(value: Any) -> str:
    """What makes one tensor of a list or tuple of them."""
    several = isinstance(value, (list, tuple)) and len(value) > 0
    if not several or not all(isinstance(each, Tensor) for each in value):
        return ""
    return (
        ": torch.stack makes one of those of tasks; several inputs of a module are joined in one "
        "(torch.cat), which its forward takes apart"
    )


def check_samples(kind: str, x: Tensor, y: Tensor) -> None:
    for name, value in ((f"{kind}_x", x), (f"{kind}_y", y)):
        if not isinstance(value, Tensor):
            way = _one_of_several(value)
            raise TypeError(f"{name} must be a tensor, not {kind_of(value)}{way}")
        if value.layout is not torch.strided or value.is_nested:
            raise TypeError(f"{name} must be a dense tensor, not one of layout {value.layout}")
    x_shape, y_shape = x.shape, y.shape
    if len(x_shape) < 2 or len(y_shape) < 2 or x_shape[:2] != y_shape[:2]:
        raise ValueError(
            f"{kind}_x must be [T, {_COUNT[kind]}, ...] and {kind}_y [T, {_COUNT[kind]}, ...], "
            f"not {list(x_shape)} and {list(y_shape)}{_way_out(kind, x, y)}"
        )
    if x_shape[0] == 0 or x_shape[1] == 0:
        raise ValueError(f"{kind}_x is empty: {list(x_shape)} has no tasks or no samples")
    dtype = y.dtype
    if x.device != y.device:
        raise TypeError(f"{kind}_x is on {x.device}, {kind}_y on {y.device}")
    if dtype is torch.int64:
        return
    if not dtype.is_floating_point:
        raise TypeError(f"{kind}_y must be int64 labels or floating targets, not {dtype}")
    if x.is_floating_point() and x.dtype is not dtype:
        raise TypeError(f"{kind}_x is {x.dtype}, {kind}_y {dtype}: floating tensors share a dtype")


_COUNT = {"support": "S", "query": "Q"}


def check_rows(name: str, x: torch.Size, predictions: torch.Size) -> None:
    """ValueError unless there is a prediction for each sample of a task, by the shapes of both."""
    if predictions[:1] == x[:1]:
        return
    count = "S" if name == "support_x" else "Q"
    way = " (.squeeze() drops the dimension of a lone sample; .squeeze(-1) does not)"
    raise ValueError(
        f"the module makes {list(predictions)} of a task's {name} {list(x)}; it must return one "
        f"prediction a sample, [{count}, O]{way if x[0] == 1 else ''}"
    )


def _way_out(kind: str, x: Tensor, y: Tensor) -> str:
    """A hint where these look like the samples of one task."""
    if x.shape[:1] != y.shape[:1] or (x.dim() > 2 and y.dim() > 1):
        return ""
    return f"; did you forget the task dimension? One task is {kind}_x[None], {kind}_y[None]"


def _check_alike(support_name: str, support: Tensor, query_name: str, query: Tensor) -> None:
    support_shape, query_shape = support.shape, query.shape
    if support_shape[0] != query_shape[0]:
        raise ValueError(
            f"{support_name} has {support_shape[0]} tasks, {query_name} {query_shape[0]}"
        )
    if support_shape[2:] != query_shape[2:]:
        raise ValueError(
            f"samples of {support_name} are {list(support_shape[2:])}, of {query_name} "
            f"{list(query_shape[2:])}"
        )
    if support.dtype is not query.dtype or support.device != query.device:
        raise TypeError(
            f"{support_name} is {support.dtype} on {support.device}, "
            f"{query_name} {query.dtype} on {query.device}"
        )
