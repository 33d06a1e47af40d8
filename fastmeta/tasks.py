"""What flows through everything: a batch of tasks, and what comes out of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from fastmeta.accuracy import accuracy_of
from fastmeta.backends.looks import looks
from fastmeta.backends.registry import requested_backend
from fastmeta.functional.capture import assert_later, is_capturing
from fastmeta.functional.forward import task_by_task, task_forward
from fastmeta.words import kind_of

__all__ = ["Adapted", "MetaOutput", "TaskBatch", "check_queries"]

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
        support_y: [T, S] int64 labels, or [T, S, ...] floating targets.
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
        _check_forms(support_x, support_y, query_x, query_y)
        support_x, support_y = _filled("support", support_x, support_y, support_weight)
        query_x, query_y = _filled("query", query_x, query_y, query_weight)
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
        _check_samples("support", support_x, support_y)
        support_x, support_y = _filled("support", support_x, support_y, support_weight)
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


@dataclass(frozen=True)
class MetaOutput:
    """What a meta-learner says about the queries of T tasks.

    Attributes:
        loss: [T], differentiable.
        predictions: [T, Q, O].
        targets: [T, Q] or [T, Q, O], as given; padding replaced.
        weight: [T, Q] or None.
        counted: the accuracy [T], where it came with the loss.
    """

    loss: Tensor
    predictions: Tensor
    targets: Tensor
    weight: Tensor | None = None
    counted: Tensor | None = None

    @property
    def accuracy(self) -> Tensor:
        """[T]: the share of a task's queries whose largest output is their label.

        Of equal outputs the first is the largest. A query with an output that is NaN counts as
        wrong.

        Raises:
            TypeError: the targets are not class labels.
        """
        if self.targets.is_floating_point():
            raise TypeError(
                f"accuracy needs integer class labels, and these targets are {self.targets.dtype} "
                f"{list(self.targets.shape)}"
            )
        if self.counted is not None:
            return self.counted
        return accuracy_of(self.predictions, self.targets, self.weight)

    def detach(self) -> MetaOutput:
        """The same numbers, without the graph that led to them."""
        return replace(
            self,
            loss=self.loss.detach(),
            predictions=self.predictions.detach(),
            counted=None if self.counted is None else self.counted.detach(),
        )


class Adapted:
    """A module with the fast weights of T tasks.

    Attributes:
        parameters: every parameter by name; those that adapted are [T, *shape].

    Args:
        module: gives structure, buffers and mode.
        parameters: as the attribute.
        tasks: T.
        randomness: None (a random layer is an error), "same" or "different" over tasks.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        tasks: int,
        randomness: str | None = None,
    ) -> None:
        self.module = module
        self.parameters = dict(parameters)
        self._tasks = tasks
        self._randomness = randomness

    def __len__(self) -> int:
        return self._tasks

    def __call__(self, x: Tensor) -> Tensor:
        """Predictions [T, Q, O] for x [T, Q, ...], differentiable into `x` and the fast weights.

        Raises:
            ValueError: `x` is not of T tasks.
            TypeError: `x` is not a tensor.
        """
        check_queries(x, self._tasks)
        if requested_backend() == "reference":
            return task_by_task(self.module, self.parameters, x)
        return task_forward(self.module, self.parameters, x, self._randomness)


def check_queries(x: object, tasks: int) -> None:
    """TypeError or ValueError unless `x` is a tensor [T, Q, ...] for so many tasks."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [T, Q, ...], not {kind_of(x)}")
    if x.dim() < 2 or x.shape[0] != tasks:
        raise ValueError(f"x must be [T, Q, ...] with T = {tasks}, not {list(x.shape)}")


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


_sound_forms: set[Hashable] = set()  # looks that passed the checks
_most_forms = 1024


def _check_forms(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> None:
    tensors = [support_x, support_y, query_x, query_y]
    form = looks(tensors)  # None where one is no tensor
    if form in _sound_forms:
        return
    _check_samples("support", support_x, support_y)
    _check_samples("query", query_x, query_y)
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


def _check_samples(kind: str, x: Tensor, y: Tensor) -> None:
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


def _has_padding(kind: str, weight: Tensor, x: Tensor) -> bool:
    """Whether a weight is 0; raises for weights that are not as `TaskBatch` says."""
    name = f"{kind}_weight"
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, not {_describe(weight)}")
    if weight.shape != x.shape[:2]:
        raise ValueError(f"{name} must be {list(x.shape[:2])}, not {list(weight.shape)}")
    if weight.device != x.device or (x.is_floating_point() and weight.dtype is not x.dtype):
        raise TypeError(f"{name} is {_describe(weight)}, {kind}_x {_describe(x)}")
    values = weight.detach()
    if is_capturing(values):
        usable = (values >= 0) & (values < math.inf) & (values.amax(1, keepdim=True) > 0)
        assert_later(usable, f"{name} is negative, not finite, or 0 for all samples of a task")
        return True
    low, high = torch.stack(values.aminmax()).tolist()
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"{name} must be finite and not negative")
    empty = values.amax(1) == 0 if low == 0 else None
    if empty is not None and empty.any():
        raise ValueError(f"{name} is 0 for every sample of tasks {empty.nonzero()[:, 0].tolist()}")
    return low == 0


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} on {value.device}"
    return kind_of(value)


def _filled(kind: str, x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The samples with their padding replaced; raises for weights as `_has_padding` does."""
    if weight is None or not _has_padding(kind, weight, x):
        return x, y
    real = weight.detach() > 0
    # A copy of a real sample is safe under any network; a row of zeros is not (x / |x|).
    first_real = real.int().argmax(1)
    return _fill(x, real, first_real), _fill(y, real, first_real)


def _fill(values: Tensor, real: Tensor, first_real: Tensor) -> Tensor:
    tasks = torch.arange(len(values), device=values.device)
    filler = values[tasks, first_real].unsqueeze(1)
    return torch.where(real[(...,) + (None,) * (values.dim() - 2)], values, filler)
