"""The loss of prototypical networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.accuracy import accuracy_of
from fastmeta.backends.halves import dtype_of_sums, for_sums
from fastmeta.backends.operation import is_traced
from fastmeta.backends.prototypes import Task, common_value, in_all
from fastmeta.functional.distances import distance
from fastmeta.functional.eager import Function, apply_to_plain, traced_whole
from fastmeta.functional.labels import labels_in_range, without_padding
from fastmeta.functional.losses import task_loss
from fastmeta.functional.prototype_checks import Known, checked
from fastmeta.functional.prototype_native import (
    check_values,
    loss_at_once,
    loss_backward,
    loss_forward,
    number_or_tensor,
)
from fastmeta.functional.prototypes import class_means
from fastmeta.functional.transforms import is_wrapped

__all__ = ["loss_of_prototypes", "prototype_loss"]


@traced_whole
def prototype_loss(
    support: Tensor,
    support_y: Tensor,
    query: Tensor,
    query_y: Tensor,
    *,
    n_way: int,
    metric: str = "sqeuclidean",
    temperature: float | Tensor = 1.0,
    support_weight: Tensor | None = None,
    query_weight: Tensor | None = None,
    return_accuracy: bool = False,
    reduction: str = "none",
) -> tuple[Tensor, ...]:
    """Classify the queries of each task by their distances to its prototypes.

    The logits are minus the distances over the temperature; the loss is the mean cross-entropy
    over the task's queries: Snell et al. 2017, equation 2 and algorithm 1.

    Args:
        support: [T, S, D] features, floating; half precision is summed in float32: the
            kernels convert it as they load it, and round its gradients once.
        support_y: [T, S], int64, in [0, n_way), in any order and any number a class.
        query: [T, Q, D].
        query_y: [T, Q], int64, in [0, n_way).
        n_way: N, the number of classes.
        metric: "sqeuclidean", "euclidean", "cosine" or "dot", as in `pairwise_distance`.
        temperature: above 0; a number, or a tensor [] or [T], which may be learned.
        support_weight: [T, S], finite and not negative, as in `prototypes`. A sample of weight 0
            is padding, and may hold anything; so below.
        query_weight: [T, Q]; the mean over queries becomes sum(weight * loss) / sum(weight).
        return_accuracy: whether the share of queries whose largest logit is that of their label
            is wanted too.
        reduction: "none", or "mean" or "sum" over the tasks, which saves the time of an operation.

    Returns:
        The loss [T], or [] with a reduction, and the logits [T, Q, N], of the dtype of the features
        (float32 for half precision), differentiable to any order; with `return_accuracy` the
        accuracy [T] too, which the CPU kernels count as they go. Of equal logits the first is the
        largest; a query with a logit that is NaN counts as wrong. Queries are weighed as in the
        loss. The logits of padding have no meaning.

    Raises:
        ValueError: shapes that do not fit, a label outside [0, n_way), a class without a support
            sample of weight above 0, a weight that is negative or not finite, an unknown metric or
            reduction, a temperature that is not above 0 and finite (inside a CUDA graph, nobody
            can look).
        TypeError: dtypes or devices that do not fit, or a temperature that is no number.

    Equivalent to::

        means = prototypes(support, support_y, n_way)
        logits = -pairwise_distance(query, means, metric) / temperature
        loss = torch.stack([F.cross_entropy(logits[t], query_y[t]) for t in range(T)])
        loss = loss.mean()  # with reduction="mean"
        accuracy = (logits.argmax(-1) == query_y).float().mean(1)
    """
    return loss_of_prototypes(
        support, support_y, query, query_y, n_way, metric, temperature, support_weight,
        query_weight, return_accuracy, reduction,
    )  # fmt: skip


def loss_of_prototypes(
    support: Tensor,
    support_y: Tensor,
    query: Tensor,
    query_y: Tensor,
    n_way: int,
    metric: str,
    temperature: float | Tensor,
    support_weight: Tensor | None,
    query_weight: Tensor | None,
    return_accuracy: bool,
    reduction: str = "none",
    positive: bool = False,
) -> tuple[Tensor, ...]:
    """`prototype_loss`, where a learner may know its temperature to be positive: a look at the
    value would wait for a GPU.
    """
    given = Task(support, support_y, support_weight, query, query_y, query_weight)
    known, task, n_way, temperature = checked(given, n_way, metric, temperature)
    share = _share(reduction, task.query.shape[0])
    if known is not None:
        return _fused(known, task, n_way, metric, temperature, return_accuracy, share)
    if not positive:
        check_values(temperature)
    loss, logits = _composed(task, n_way, metric, temperature, share)
    if return_accuracy:
        return loss, logits, accuracy_of(logits, task.query_y, task.query_weight)
    return loss, logits


def _share(reduction: str, tasks: int) -> float | None:
    """What every task's loss counts; None where they stay apart."""
    if reduction == "none":
        return None
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum", not {reduction!r}')
    return 1 / tasks if reduction == "mean" else 1.0


def _composed(
    task: Task, n_way: int, metric: str, temperature: float | Tensor, share: float | None
) -> tuple[Tensor, Tensor]:
    """The loss made of differentiable operations."""
    support, support_y, support_weight, query, query_y, query_weight = task
    support, query = for_sums(support), for_sums(query)
    support_y = labels_in_range("support_y", support_y, support_weight, n_way, every_class=True)
    query_y = labels_in_range("query_y", query_y, query_weight, n_way, every_class=False)
    support = without_padding(support, support_weight)
    means = class_means(support, support_y, n_way, support_weight)
    if query_weight is not None:  # a padding's distances, which count 0 times, are no larger then
        query = torch.where((query_weight > 0).unsqueeze(-1), query, means[:, :1].detach())
    if isinstance(temperature, Tensor):
        temperature = temperature.reshape(-1, 1, 1)
    logits = -distance(query, means, metric) / temperature
    return in_all(task_loss("cross_entropy", logits, query_y, query_weight), share), logits


# ---- one native call forward, one backward -----------------------------------------------------


def _fused(
    known: Known, task: Task, n_way: int, metric: str, temperature: float | Tensor,
    return_accuracy: bool, share: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    of_temperature = isinstance(temperature, Tensor) and temperature.requires_grad
    wants_gradient = task.support.requires_grad or task.query.requires_grad or of_temperature
    accuracy = None
    if return_accuracy:
        accuracy = task.query.new_empty(task.query.shape[0], dtype=dtype_of_sums(task.query))
    if wants_gradient and torch.is_grad_enabled():
        call = known, task, n_way, metric, temperature, accuracy, share
        loss, logits = apply_to_plain(_Fused, call, task.support, task.query, temperature)
    else:
        loss, logits, _ = loss_forward(
            known.kernels, task, n_way, metric, temperature, False, accuracy, share
        )
    return (loss, logits) if accuracy is None else (loss, logits, accuracy)


class _Fused(Function):
    """(call, support, query, temperature) -> loss, logits.

    call: (known, task, n_way, metric, temperature, accuracy, share); the accuracy is filled.
    """

    @staticmethod
    def forward(
        ctx: Any, call: tuple[Any, ...], support: Tensor, query: Tensor, given: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        known, task, n_way, metric, temperature, accuracy, share = call
        wanted = ctx.needs_input_grad[1:]
        ctx.factor, ctx.gradients = _expected_factor(known, wanted), None
        if ctx.factor is None:
            loss, logits, record = loss_forward(
                known.kernels, task, n_way, metric, temperature, True, accuracy, share
            )
        else:
            loss, logits, record, ctx.gradients = loss_at_once(
                known.kernels, task, n_way, metric, temperature, accuracy, share,
                ctx.factor if share is None else share * ctx.factor, wanted,
            )  # fmt: skip
        number, learned = number_or_tensor(temperature)
        ctx.call = known, record, n_way, metric, number, share
        ctx.save_for_backward(*task, learned)
        ctx.set_materialize_grads(False)
        return loss, logits

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_logits: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *tensors, learned = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None  # a second backward makes others
        known, record, n_way, metric, number, share = ctx.call
        task, wanted = Task(*tensors), ctx.needs_input_grad[1:]
        temperature = number if learned is None else learned
        if grad_loss is None and grad_logits is None:
            return (None,) * 4
        more = grad_logits is not None or torch.is_grad_enabled()
        if grad_loss is None or more or is_wrapped(grad_loss):  # by torch.vmap
            grads = grad_loss, grad_logits
            found = _composed_gradients(task, n_way, metric, temperature, share, grads, wanted)
        else:
            factor = _factor(known, grad_loss)
            if gradients is not None and factor == ctx.factor:
                return None, *gradients, None
            if share is not None:
                grad_loss = _of_each(grad_loss, factor, share, task.query.shape[0])
            found = loss_backward(
                known.kernels, record, task, n_way, metric, temperature, grad_loss, wanted
            )
        support, query, per_task = found
        if per_task is not None and temperature.dim() == 0:
            per_task = per_task.sum()
        return None, support, query, per_task


def _expected_factor(known: Known, wanted: tuple[bool, bool, bool]) -> float | None:
    """What a backward will multiply every loss by, if the gradients had better be made at once."""
    if known.habit is None or wanted[2] or is_traced():  # the temperature's are made by a backward
        return None
    return known.habit.expected()


def _factor(known: Known, grad_loss: Tensor) -> float | None:
    """The gradient of every task's loss if they are all alike, as those of a mean are."""
    if known.habit is None or is_traced() or grad_loss.is_neg():
        return None
    factor = common_value(grad_loss)
    known.habit.met(factor)
    return factor


def _of_each(grad: Tensor, value: float | None, share: float, tasks: int) -> Tensor:
    """[T]: the gradient of every task's loss, rounded as where it is made at once."""
    each = share * grad if value is None else grad.new_full((), share * value)
    return each.expand(tasks)


def _composed_gradients(
    task: Task, n_way: int, metric: str, temperature: float | Tensor, share: float | None,
    grads: tuple[Tensor | None, Tensor | None], wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients as differentiable operations: where a graph is built, or of the logits."""
    builds_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that the gradient of one input does not take in what another makes of it:
        # queries are often centred on their support.
        support, query = task.support.view_as(task.support), task.query.view_as(task.query)
        if isinstance(temperature, Tensor):
            temperature = temperature.view_as(temperature)
        task = task._replace(support=support, query=query)
        candidates: tuple[Any, ...] = (support, query, temperature)
        inputs = [x for x, want in zip(candidates, wanted, strict=True) if want]
        outputs = _composed(task, n_way, metric, temperature, share)
        pairs = [pair for pair in zip(outputs, grads, strict=True) if pair[1] is not None]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                inputs,
                [grad for _, grad in pairs],
                create_graph=builds_graph,
                allow_unused=True,
            )
        )
    return tuple(next(found) if want else None for want in wanted)
