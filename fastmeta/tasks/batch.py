"""T tasks at once, checked when they are put together."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from fastmeta.functional.capture import assert_later, is_capturing
from fastmeta.tasks.checks import check_forms, check_samples
from fastmeta.tasks.padding import filled
from fastmeta.words import kind_of

__all__ = ["TaskBatch"]

_IGNORED = (
    ": give samples to ignore a weight of 0, or write "
    "loss=lambda logits, labels: F.cross_entropy(logits, labels)"
)


class TaskBatch:
    """T tasks, each with S support and Q query samples.

    Ragged tasks are padded to S and Q, and weight 0 marks the padding. Padding may hold anything,
    NaN and label -1 too: it is replaced here by a copy of the task's first real sample, which
    weight 0 keeps out of every result.

    What looks at values, weights here and labels where a learner takes them, waits for a GPU once a
    batch. In a CUDA graph nobody can look: there the GPU checks at each replay, and ends in an
    error before a label outside its range is used.

    Args:
        support_x: [T, S, ...]. Inputs, targets and weights are on one device, and the floating
            ones of one dtype.
        support_y: [T, S] int64 labels, [T, S, P...] with one at each place of a sample, or
            [T, S, ...] floating targets.
        query_x: [T, Q, ...], samples shaped like those of `support_x`.
        query_y: [T, Q] or [T, Q, ...], of the dtype of `support_y`.
        support_weight: [T, S], finite, not negative, and not all 0 for any task.
        query_weight: [T, Q], likewise.

    Raises:
        ValueError: shapes that do not fit, no tasks or samples, weights that are not as above.
        TypeError: something that is not a tensor, or dtypes or devices that differ.
    """

    __slots__ = (
        "support_x", "support_y", "query_x", "query_y", "support_weight", "query_weight",
        "_labels_seen", "_known_labels",
    )  # fmt: skip

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    support_weight: Tensor | None
    query_weight: Tensor | None
    _labels_seen: tuple[int, ...] | None  # n_way and the versions of the labels found inside it
    _known_labels: tuple[Any, ...]  # what was found of targets, and their versions

    def __init__(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor,
        support_weight: Tensor | None = None,
        query_weight: Tensor | None = None,
    ) -> None:
        check_forms(support_x, support_y, query_x, query_y)
        support_x, support_y = filled("support", support_x, support_y, support_weight)
        query_x, query_y = filled("query", query_x, query_y, query_weight)
        _set(self, "support_x", support_x)
        _set(self, "support_y", support_y)
        _set(self, "query_x", query_x)
        _set(self, "query_y", query_y)
        _set(self, "support_weight", support_weight)
        _set(self, "query_weight", query_weight)
        _set(self, "_labels_seen", None)
        _set(self, "_known_labels", ())

    @classmethod
    def of_support(
        cls, support_x: Tensor, support_y: Tensor, support_weight: Tensor | None = None
    ) -> TaskBatch:
        """Tasks to adapt to and nothing else: the support set is the query set too."""
        check_samples("support", support_x, support_y)
        support_x, support_y = filled("support", support_x, support_y, support_weight)
        support = (support_x, support_y)
        return cls._checked(*support, *support, support_weight, support_weight)

    @classmethod
    def _checked(cls, *tensors: Tensor | None) -> TaskBatch:
        tasks = cls.__new__(cls)
        for name, tensor in zip(_TENSORS, tensors, strict=True):
            _set(tasks, name, tensor)
        _set(tasks, "_labels_seen", None)
        _set(tasks, "_known_labels", ())
        return tasks

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set: a TaskBatch is checked once; make a new one")

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskBatch._checked, tuple(getattr(self, name) for name in _TENSORS)

    def __len__(self) -> int:
        return self.support_x.shape[0]

    def __getitem__(self, index: SupportsIndex | slice | Tensor | Sequence[int]) -> TaskBatch:
        """The tasks at an index, a slice, or 1-D indices or a mask, as a batch of their own."""
        if not isinstance(index, slice):
            index = _as_indices(index, len(self))
        chosen = self._map(lambda tensor: tensor[index])
        if len(chosen) == 0:
            raise ValueError(f"index {index} leaves none of the {len(self)} tasks")
        return chosen

    def __iter__(self) -> Iterator[TaskBatch]:
        """Each task as a batch of one."""
        return (self[t] for t in range(len(self)))

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> TaskBatch:
        """On another device; with `dtype`, floating tensors in it and labels as they are."""
        return self._map(
            lambda tensor: tensor.to(
                device=device,
                dtype=dtype if tensor.is_floating_point() else None,
                non_blocking=non_blocking,
            )
        )

    def pin_memory(self) -> TaskBatch:
        """In page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def check_finite(self) -> TaskBatch:
        """Itself, or ValueError naming the tensor and the tasks that hold NaN or infinity."""
        for name in _TENSORS[:4]:
            broken = ~torch.isfinite(getattr(self, name)).flatten(1).all(1)
            if broken.any():
                raise ValueError(f"{name} is not finite in tasks {broken.nonzero()[:, 0].tolist()}")
        return self

    def check_labels(self, n_way: int) -> None:
        """ValueError if an integer label is outside [0, n_way); remembered, so once a batch."""
        known = self.known_ways
        if known is not None and known <= n_way:
            return
        bounds = {name: getattr(self, name).aminmax() for name in ("support_y", "query_y")}
        if is_capturing(self.support_y):
            for name, (low, high) in bounds.items():
                assert_later((low >= 0) & (high < n_way), f"{name} has labels outside its classes")
            return
        # In one tensor, so that a GPU is waited for once.
        found = torch.stack([torch.stack(low_high) for low_high in bounds.values()]).tolist()
        for name, (low, high) in zip(bounds, found, strict=True):
            if low < 0 or high >= n_way:
                raise ValueError(
                    f"{name} has labels from {low} to {high}, but the module's "
                    f"{n_way} outputs make them [0, {n_way})"
                    f"{_IGNORED if low == -100 else ''}"
                )
        self.with_known_ways(n_way)

    def with_known_ways(self, n_way: int) -> TaskBatch:
        """Itself, remembering that labels are in [0, n_way): for sources that made them so."""
        versions = _version(self.support_y), _version(self.query_y)
        _set(self, "_labels_seen", (n_way, *versions))
        return self

    @property
    def known_ways(self) -> int | None:
        """An N for which labels were found in [0, N) and have not been changed since, or None."""
        versions = _version(self.support_y), _version(self.query_y)
        if self._labels_seen is None or -1 in versions or self._labels_seen[1:] != versions:
            return None
        return self._labels_seen[0]

    def note_labels(self, labels: Hashable) -> None:
        """That was found to hold of the targets, which `knows_labels` tells until they change."""
        _set(self, "_known_labels", (labels, _version(self.support_y), _version(self.query_y)))

    def knows_labels(self, labels: Hashable) -> bool:
        versions = _version(self.support_y), _version(self.query_y)
        return -1 not in versions and self._known_labels == (labels, *versions)

    def with_inputs(self, support_x: Tensor, query_x: Tensor) -> TaskBatch:
        """The same tasks seen through features: [T, S, ...] and [T, Q, ...]."""
        return self._checked(
            support_x, self.support_y, query_x, self.query_y,
            self.support_weight, self.query_weight,
        )  # fmt: skip

    def __repr__(self) -> str:
        shapes = (
            f"{name}={list(tensor.shape)}"
            for name in _TENSORS
            if (tensor := getattr(self, name)) is not None
        )
        return f"TaskBatch({', '.join(shapes)}, {self.support_x.dtype}, {self.support_x.device})"

    def _map(self, change: Callable[[Tensor], Tensor]) -> TaskBatch:
        tensors = (getattr(self, name) for name in _TENSORS)
        return self._checked(*(None if tensor is None else change(tensor) for tensor in tensors))


_set = object.__setattr__


def _version(tensor: Tensor) -> int:
    """Grows when the tensor is changed in place; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version


_TENSORS = ("support_x", "support_y", "query_x", "query_y", "support_weight", "query_weight")


def _as_indices(index: Any, tasks: int) -> slice | Tensor:
    """One position as a slice, so that it stays a batch; more as a 1-D tensor."""
    if getattr(index, "ndim", 0) == 0 and hasattr(index, "__index__"):
        position = range(tasks)[operator.index(index)]  # raises IndexError, which ends iteration
        return slice(position, position + 1)
    if not isinstance(index, (Tensor, np.ndarray, list, range)):
        raise TypeError(f"tasks are found by an int, a slice or 1-D indices, not {kind_of(index)}")
    indices = torch.as_tensor(index)
    if indices.dim() != 1 or indices.is_floating_point():
        raise TypeError(
            f"indices of tasks must be whole numbers [n] or a mask [T], not {indices.dtype} "
            f"{list(indices.shape)}"
        )
    return indices
