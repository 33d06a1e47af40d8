"""Labels and weights of samples: checked once, and padding made harmless."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.capture import assert_later, is_capturing
from fastmeta.functional.eager import Function
from fastmeta.functional.transforms import fold_batch, unfold_batch
from fastmeta.words import kind_of

__all__ = ["check_labels", "check_ways", "check_weight", "labels_in_range", "without_padding"]


def check_labels(name: str, labels: Tensor, samples_name: str, samples: Tensor) -> None:
    """TypeError or ValueError unless `labels` is int64, a label for each sample."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor [T, S], not {kind_of(labels)}")
    if labels.shape != samples.shape[:2]:
        raise ValueError(
            f"{name} must be {list(samples.shape[:2])} for {samples_name} {list(samples.shape)}, "
            f"not {list(labels.shape)}"
        )
    if labels.dtype is not torch.int64:
        raise TypeError(f"{name} must be int64, not {labels.dtype}")
    _check_device(name, labels, samples_name, samples)


def check_weight(name: str, weight: Tensor, samples_name: str, samples: Tensor) -> None:
    """TypeError or ValueError unless `weight` is of the samples' dtype, one for each of them."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a tensor [T, S], not {kind_of(weight)}")
    if weight.shape != samples.shape[:2]:
        raise ValueError(
            f"{name} must be {list(samples.shape[:2])} for {samples_name} {list(samples.shape)}, "
            f"not {list(weight.shape)}"
        )
    if weight.dtype is not samples.dtype:
        raise TypeError(f"{name} is {weight.dtype}, {samples_name} {samples.dtype}")
    _check_device(name, weight, samples_name, samples)


def check_ways(n_way: int, samples_name: str, samples: Tensor) -> None:
    """ValueError if there are more classes than samples: before memory is asked for them."""
    if n_way > samples.shape[1]:
        raise ValueError(
            f"n_way is {n_way}, more than the samples of a task in {samples_name} "
            f"{list(samples.shape)}: a class would have no sample"
        )


def labels_in_range(
    name: str, labels: Tensor, weight: Tensor | None, n_way: int, every_class: bool
) -> Tensor:
    """The labels, with 0 for those of padding.

    Raises:
        ValueError: a label outside [0, n_way), a weight that is negative or not finite, a task
            whose weights are all 0, or, with `every_class`, a class without a sample of a task.
    """
    return _LabelsInRange.apply(labels, weight, name, n_way, every_class)


def without_padding(x: Tensor, weight: Tensor | None) -> Tensor:
    """Samples [T, S, D] with zeros for those whose weight is 0."""
    return x if weight is None else torch.where((weight > 0).unsqueeze(-1), x, x.new_zeros(()))


class _LabelsInRange(Function):
    """A Function, since only the forward of one sees values under torch.func."""

    @staticmethod
    def forward(
        labels: Tensor, weight: Tensor | None, name: str, n_way: int, every_class: bool
    ) -> Tensor:
        real = torch.ones_like(labels, dtype=torch.bool)
        if weight is not None:
            _check_weights(weight, name)
            real = weight > 0
        outside = real & ((labels < 0) | (labels >= n_way))
        if is_capturing(labels):
            assert_later(~outside, f"{name} has a label outside its classes")
        elif outside.any():
            task, sample = outside.nonzero()[0].tolist()
            raise ValueError(
                f"{name} has a label outside [0, {n_way}): {int(labels[task, sample])} for sample "
                f"{sample} of task {task}"
            )
        labels = torch.where(real, labels, 0)
        if every_class:
            samples = labels.new_zeros(len(labels), n_way)
            samples.scatter_add_(1, labels, real.to(labels.dtype))
            missing = samples == 0
            if is_capturing(labels):
                assert_later(~missing, f"{name} has no sample of some class in some task")
            elif missing.any():
                task, label = missing.nonzero()[0].tolist()
                raise ValueError(f"{name} has no sample of class {label} in task {task}")
        return labels

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        return None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int | None]:
        labels, weight, *rest = inputs
        labels, weight = fold_batch(info.batch_size, in_dims, (labels, weight))
        checked = _LabelsInRange.apply(labels, weight, *rest)
        return unfold_batch(info.batch_size, checked), 0


def _check_weights(weight: Tensor, name: str) -> None:
    wrong = ~((weight >= 0) & (weight < torch.inf))
    if is_capturing(weight):
        usable = ~wrong & (weight.amax(1, keepdim=True) > 0)
        assert_later(usable, f"a weight beside {name} is negative or not finite, or all are 0")
        return
    if wrong.any():
        task, sample = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"a weight must be finite and not negative; beside {name} it is "
            f"{float(weight[task, sample])} for sample {sample} of task {task}"
        )
    empty = (weight == 0).all(1)
    if empty.any():
        raise ValueError(f"the weights beside {name} are all 0 in task {int(empty.nonzero()[0])}")


def _check_device(name: str, tensor: Tensor, samples_name: str, samples: Tensor) -> None:
    if tensor.device != samples.device:
        raise TypeError(f"{name} is on {tensor.device}, {samples_name} on {samples.device}")
