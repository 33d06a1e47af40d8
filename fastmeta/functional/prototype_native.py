"""The native calls of the loss of prototypes: directly, or as operators where a graph is traced."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmeta.backends.halves import dtype_of_sums
from fastmeta.backends.operation import is_traced, operation
from fastmeta.backends.prototypes import Task, in_all
from fastmeta.functional.capture import assert_later, is_capturing
from fastmeta.functional.labels import labels_in_range
from fastmeta.functional.prototypes import refuse_labels
from fastmeta.functional.transforms import values_of

__all__ = [
    "check_values", "loss_at_once", "loss_backward", "loss_forward", "number_or_tensor",
]  # fmt: skip


def loss_forward(
    kernels: ModuleType, task: Task, n_way: int, metric: str, temperature: float | Tensor,
    differentiable: bool, accuracy: Tensor | None, share: float | None,
) -> tuple[Tensor, Tensor, Any]:  # fmt: skip
    """Loss, logits, and what `loss_backward` needs of them; fills `accuracy`.

    The loss is [T], or with a `share` their sum times it.
    """
    if is_traced():
        number, tensor = number_or_tensor(temperature)
        loss, logits, *counted = _loss(
            kernels, *task, n_way, metric, number, tensor, accuracy is not None
        )
        if accuracy is not None:
            accuracy.copy_(counted[0])
        return in_all(loss, share), logits, None
    found = kernels.loss_forward(task, n_way, metric, temperature, differentiable, accuracy, share)
    return _refuse(task, n_way, temperature) if found is None else found


def loss_at_once(
    kernels: ModuleType, task: Task, n_way: int, metric: str, temperature: float | Tensor,
    accuracy: Tensor | None, share: float | None, factor: float, wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Any, tuple[Tensor | None, Tensor | None]]:  # fmt: skip
    """`loss_forward` and, for a gradient of `factor` for every task, those of support and query."""
    found = kernels.loss_at_once(task, n_way, metric, temperature, accuracy, share, factor, wanted)
    return _refuse(task, n_way, temperature) if found is None else found


def _refuse(task: Task, n_way: int, temperature: float | Tensor) -> Any:
    """ValueError: what does not fit, of what kernels have refused."""
    labels_in_range("query_y", task.query_y, task.query_weight, n_way, every_class=False)
    check_values(temperature)
    refuse_labels("support_y", task.support_y, task.support_weight, n_way)


def loss_backward(
    kernels: ModuleType, record: Any, task: Task, n_way: int, metric: str,
    temperature: float | Tensor, grad_loss: Tensor, wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients for support, query and the temperatures [T]; None for what is not wanted."""
    if not is_traced():
        return kernels.loss_backward(record, task, grad_loss, wanted)
    number, tensor = number_or_tensor(temperature)
    found = iter(_loss_backward(kernels, grad_loss, *task, n_way, metric, number, tensor, wanted))
    return tuple(next(found) if want else None for want in wanted)


def check_values(temperature: float | Tensor) -> None:
    """ValueError unless all are above 0 and finite."""
    if not isinstance(temperature, Tensor):
        return
    values = values_of(temperature)
    fits = (values > 0) & (values < torch.inf)
    if is_capturing(values):
        assert_later(fits, "a temperature is not above 0 and finite")
    elif not fits.all():
        wrong = values[~fits].flatten()[0].item()
        raise ValueError(f"temperature must be above 0 and finite, and one is {wrong}")


def number_or_tensor(temperature: float | Tensor) -> tuple[float, Tensor | None]:
    """A temperature that is a number, and one that is a tensor, as far as it is either."""
    return (1.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)


# ---- the operators -----------------------------------------------------------------------------
# What a forward leaves for its backward is no tensor, so that the backward repeats it.

_TASK = (
    "Tensor support, Tensor support_y, Tensor? support_weight, Tensor query, Tensor query_y, "
    "Tensor? query_weight, int n_way, str metric, float number, Tensor? temperature"
)


def _no_loss(kernels: str, *arguments: Any) -> list[Tensor]:
    query, n_way, with_accuracy = arguments[3], arguments[6], arguments[10]
    tasks, queries = query.shape[:2]
    dtype = dtype_of_sums(query)
    shapes = [(tasks,), (tasks, queries, n_way), *[(tasks,)] * with_accuracy]
    return [query.new_empty(shape, dtype=dtype) for shape in shapes]


@operation(
    f"prototype_loss(str kernels, {_TASK}, bool with_accuracy) -> Tensor[]", fake=_no_loss
)  # fmt: skip
def _loss(kernels: ModuleType, *arguments: Any) -> list[Tensor]:
    *described, with_accuracy = arguments
    task, n_way, metric, temperature = _task_of(*described)
    accuracy = None
    if with_accuracy:
        accuracy = task.query.new_empty(len(task.query), dtype=dtype_of_sums(task.query))
    loss, logits, _ = loss_forward(kernels, task, n_way, metric, temperature, False, accuracy, None)
    return [loss, logits] if accuracy is None else [loss, logits, accuracy]


def _no_gradients(kernels: str, grad_loss: Tensor, *arguments: Any) -> list[Tensor]:
    support, query, wanted = arguments[0], arguments[3], arguments[10]
    gradients = (
        support.new_empty(support.shape),
        query.new_empty(query.shape),
        grad_loss.new_empty(grad_loss.shape),
    )
    return [gradient for gradient, want in zip(gradients, wanted, strict=True) if want]


@operation(
    f"prototype_loss_backward(str kernels, Tensor grad_loss, {_TASK}, bool[] wanted) -> Tensor[]",
    fake=_no_gradients,
)
def _loss_backward(kernels: ModuleType, grad_loss: Tensor, *arguments: Any) -> list[Tensor]:
    *described, wanted = arguments
    task, n_way, metric, temperature = _task_of(*described)
    _, _, record = loss_forward(kernels, task, n_way, metric, temperature, True, None, None)
    found = kernels.loss_backward(record, task, grad_loss, tuple(wanted))
    return [gradient for gradient in found if gradient is not None]


def _task_of(*described: Any) -> tuple[Task, int, str, float | Tensor]:
    *tensors, n_way, metric, number, temperature = described
    given = number if temperature is None else temperature.contiguous()
    return Task(*tensors).contiguous(), n_way, metric, given
