"""How many classes a batch of tasks has, and whether each of them can be learned."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.counts import whole_number
from fastmeta.functional.capture import assert_later, is_capturing
from fastmeta.tasks import TaskBatch

__all__ = ["asked_ways", "count_classes"]


def asked_ways(tasks: TaskBatch, n_way: int | None) -> int | None:
    """What `count_classes` is to be given: in a CUDA graph, what the tasks' source said."""
    return tasks.known_ways if n_way is None and is_capturing(tasks.support_y) else n_way


def count_classes(
    support_y: Tensor, query_y: Tensor | None = None, n_way: int | None = None
) -> int:
    """The number of classes of every task, each of which must have support in every task.

    Args:
        support_y: [T, S] int64.
        query_y: [T, Q] int64, or None where there are no queries.
        n_way: what it must be; None: the largest label of the support and one.

    Raises:
        TypeError: labels that are not int64.
        ValueError: a label outside [0, n_way), or a class without support, named with its task.
    """
    _check_form("support_y", support_y)
    if is_capturing(support_y) and n_way is None:
        raise RuntimeError(
            "a graph that is captured or traced cannot look for the number of classes: give n_way"
        )
    if n_way is None:
        n_way = int(support_y.max()) + 1
    n_way = whole_number("n_way", n_way)
    _check_range("support_y", support_y, n_way)
    _check_support(support_y, n_way)
    if query_y is not None:
        _check_form("query_y", query_y)
        _check_range("query_y", query_y, n_way)
    return n_way


def _check_form(name: str, labels: Tensor) -> None:
    if labels.dtype is not torch.int64:
        raise TypeError(f"{name} must be int64 labels, not {labels.dtype} {list(labels.shape)}")
    if labels.dim() != 2:
        raise ValueError(f"{name} must be one label a sample, [T, n], not {list(labels.shape)}")


def _check_range(name: str, labels: Tensor, n_way: int) -> None:
    if is_capturing(labels):
        assert_later((labels >= 0) & (labels < n_way), f"{name} has labels outside its classes")
        return
    low, high = torch.stack(labels.aminmax()).tolist()  # a GPU is waited for once
    if low < 0 or high >= n_way:
        raise ValueError(
            f"{name} has labels from {low} to {high}, but the tasks have {n_way} classes, "
            f"[0, {n_way})"
        )


def _check_support(support_y: Tensor, n_way: int) -> None:
    shots = support_y.new_zeros(len(support_y), n_way)
    shots.scatter_add_(1, support_y, torch.ones_like(support_y))
    if is_capturing(support_y):
        assert_later(shots > 0, "support_y has no sample of some class in some task")
        return
    if bool(shots.all()):
        return
    task, label = (shots == 0).nonzero()[0].tolist()
    raise ValueError(
        f"support_y has no sample of class {label} in task {task}: every class of [0, {n_way}) "
        "needs support in every task, so number the classes of a task from 0 on"
    )
