"""What must hold between a module, a loss and a batch of tasks, checked before any engine runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fastmeta.functional.forward import GLOBAL_BACKWARD_HOOKS, module_lock
from fastmeta.functional.loss_programs import (
    CrossEntropyAtPlaces,
    Unreadable,
    classes_of,
    read_loss,
    takes_labels,
)
from fastmeta.functional.losses import Loss, needs_weight, takes_weight
from fastmeta.inner_loop.loop import InnerLoop, Rates, check_rates
from fastmeta.inner_loop.probe import (
    as_one_task,
    hidden_from_saved_tensor_hooks,
    predictions_of,
    probe,
    support_loss,
    takes,
)
from fastmeta.inner_loop.reading.counters import counters_put_back
from fastmeta.inner_loop.reading.layers import called
from fastmeta.inner_loop.target_labels import NoSuchClass, check_target_labels
from fastmeta.tasks import TaskBatch

__all__ = [
    "backward_hooks", "check_dropout", "check_labels", "check_model", "check_read", "check_sizes",
    "check_targets", "loss_as_explained",
]  # fmt: skip


class Checked(NamedTuple):
    n_way: int  # of labels, where the loss takes them
    loss: Loss  # by its name or as a program, where a function is one that can be read
    unread: str | None  # why it is none, as a sentence
    unfit: str | None  # why these tasks' labels are for the loss as it came all the same


def check_model(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> Checked:
    """Run the first task's support once through module and loss, to tell early what cannot work.

    Raises:
        ValueError, TypeError: with the argument's name and the shapes.
    """
    with module_lock, counters_put_back(loop.module):
        _check_parameters(loop, parameters, tasks)
        check_rates(loop, parameters, rates)
        check_dropout(loop)
        if tasks.support_weight is not None or tasks.query_weight is not None:
            _check_weights(loop)
        theta, predictions = _probed(loop, parameters, tasks)
        _check_task_dimension(loop, theta, tasks)
    check_targets(loop.loss, list(predictions.shape[1:]), "support_y", tasks.support_y)
    check_labels(loop, classes_of(loop.loss, predictions.shape[1:]), tasks)
    loss, unread = _as_read(loop.loss, predictions, tasks)
    unfit = None if loss is loop.loss else _unfit_labels(loss, predictions, tasks)
    _check_loss(loop, predictions, tasks)
    return Checked(classes_of(loss, predictions.shape[1:]), loss, unread, unfit)


def check_sizes(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch, known: set[int]
) -> None:
    """`check_model` of batches that differ in S and Q from those it has seen, of sizes `known`.

    A forward that ends in `squeeze()` makes [5] of five samples, and [] of one.

    Raises:
        ValueError, TypeError: with the argument's name and the shapes.
    """
    for kind in ("support", "query"):
        y = getattr(tasks, f"{kind}_y")
        if y.shape[1] in known:
            continue
        with module_lock, counters_put_back(loop.module):
            predictions = predictions_of(loop, parameters, tasks, f"{kind}_x")
        check_targets(loop.loss, list(predictions.shape[1:]), f"{kind}_y", y)
        known.add(y.shape[1])


def check_read(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch, read_as: Loss
) -> None:
    """ValueError unless the loss is what it was read as, of as many samples as these, too."""
    with module_lock, counters_put_back(loop.module):
        predictions = predictions_of(loop, parameters, tasks, "support_x")
    if _as_read(loop.loss, predictions, tasks)[0] != read_as:
        raise ValueError("of so many samples the loss does something else")


def _probed(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch
) -> tuple[dict[str, Tensor], Tensor]:
    """`probe`, which tells the ways out where a module has not one input and one output."""
    try:
        return probe(loop, parameters, tasks)
    except TypeError as error:
        inputs = _inputs_needed(loop.module)
        if len(inputs) > 1:
            raise TypeError(
                f"the module's forward needs {', '.join(inputs)}, and a task has one input, "
                "support_x: join them along a dimension of the samples (torch.cat), and let the "
                "forward take them apart"
            ) from error
        if str(error).startswith("the module must return a tensor"):
            raise TypeError(
                f"{error}: let its forward join what it makes, [S, ...] each, along a dimension of "
                "the samples (torch.cat), and a loss of your own take it apart"
            ) from error
        raise


def _inputs_needed(module: nn.Module) -> list[str]:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # of native code
        return []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind in by_position]


def _as_read(loss: Loss, predictions: Tensor, tasks: TaskBatch) -> tuple[Loss, str | None]:
    """A function as what it can be read as, with labels inside of their classes; or why not."""
    if isinstance(loss, str):
        return loss, None
    given = {weight is not None for weight in (tasks.support_weight, tasks.query_weight)}
    if len(given) > 1 and not needs_weight(loss):
        return loss, "of support and query, one has weights of samples and one has none"
    try:
        with hidden_from_saved_tensor_hooks():
            queries, weighted = tasks.query_x.shape[1], True in given or needs_weight(loss)
            return read_loss(loss, predictions, tasks.support_y[0], queries, weighted), None
    except Unreadable as reason:
        return loss, str(reason)


def loss_as_explained(loss: Loss, outputs: int, dtype: torch.dtype) -> tuple[Loss, str | None]:
    """As `_as_read` would have it for the targets that are most likely, where none are there."""
    if isinstance(loss, str):
        return loss, None
    predictions, unread = torch.empty(2, outputs, dtype=dtype), ""
    for targets in (torch.empty_like(predictions), torch.zeros(2, dtype=torch.int64)):
        try:
            return read_loss(loss, predictions, targets, weighted=needs_weight(loss)), None
        except Unreadable as reason:
            kind = "labels [S]" if unread else f"targets {list(targets.shape[1:])} of a sample"
            unread += f"{'; ' if unread else ''}for {kind}, {reason}"
    return loss, unread


def _unfit_labels(read: Loss, predictions: Tensor, tasks: TaskBatch) -> str | None:
    """Why labels are such that the loss as it was read would not do as the loss as it came."""
    try:
        _check_labels(read, classes_of(read, predictions.shape[1:]), tasks)
    except NoSuchClass:
        raise
    except ValueError as error:
        return str(error)
    return None


def check_labels(loop: InnerLoop, n_way: int, tasks: TaskBatch) -> None:
    """ValueError for a label outside [0, n_way) where the loss takes labels, and as
    `check_target_labels`.
    """
    _check_labels(loop.loss, n_way, tasks)


def _check_labels(loss: Loss, n_way: int, tasks: TaskBatch) -> None:
    check_target_labels(loss, tasks)
    if takes_labels(loss) and not isinstance(loss, CrossEntropyAtPlaces):
        tasks.check_labels(n_way)


def backward_hooks(module: nn.Module) -> str | None:
    """A sentence on hooks that must run in the module's backward, or None.

    torch calls none for what runs under vmap, nor can native kernels.
    """
    only = "which the reference alone calls: remove them to run faster"
    if any(GLOBAL_BACKWARD_HOOKS):
        return f"there are global backward hooks of modules, {only}"
    for name, part in module.named_modules():
        if part._backward_pre_hooks or part._backward_hooks:
            return f"{called(name, part)} has backward hooks, {only}"
    return None


def _check_parameters(loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch) -> None:
    if loop.shapes.keys() != parameters.keys():
        raise ValueError(
            f"parameters are {list(parameters)}, but the module's are {list(loop.shapes)}"
        )
    for name, parameter in parameters.items():
        shape = list(loop.shapes[name])
        if list(parameter.shape) not in (shape, [len(tasks), *shape]):
            raise ValueError(
                f"parameter {name!r} must be {shape} or {[len(tasks), *shape]}, "
                f"not {list(parameter.shape)}"
            )
        if parameter.device != tasks.support_x.device:
            raise TypeError(
                f"parameter {name!r} is on {parameter.device}, support_x on "
                f"{tasks.support_x.device}"
            )
    dtypes = {parameter.dtype for parameter in parameters.values()}
    x = tasks.support_x
    if dtypes and x.is_floating_point() and x.dtype not in dtypes:
        raise TypeError(
            f"support_x is {x.dtype}, the parameters {', '.join(map(str, dtypes))}: "
            "tasks.to(dtype=...) or model.to(dtype) changes either"
        )


def check_dropout(loop: InnerLoop) -> None:
    """ValueError where dropout would draw and nobody has said how."""
    active = [name for name, layer in loop.module.named_modules() if _drops(layer)]
    if active and loop.randomness is None:
        raise ValueError(
            f"dropout in training mode ({', '.join(active)}) makes the inner loop random: call "
            '.eval() on it, or choose engine="vmap" with randomness="different" or "same"'
        )


def _drops(layer: nn.Module) -> bool:
    if isinstance(layer, nn.RNNBase):
        return layer.training and layer.dropout > 0 and layer.num_layers > 1
    return isinstance(layer, _DropoutNd) and layer.training and layer.p > 0


def _check_weights(loop: InnerLoop) -> None:
    if not takes_weight(loop.loss):
        raise ValueError(
            "support_weight and query_weight need a loss that takes them: a name, or a callable "
            "(predictions, targets, weight), whose third parameter is called weight: [S], 0 for "
            "padding"
        )
    norms = [n for n, layer in loop.module.named_modules() if isinstance(layer, _BatchNorm)]
    if norms:
        raise ValueError(
            f"support_weight and query_weight do not go with batch norms ({', '.join(norms)}): "
            "padding would enter their statistics. nn.GroupNorm takes padded tasks; tasks of one "
            "size need no weights"
        )


def _check_task_dimension(loop: InnerLoop, theta: Mapping[str, Tensor], tasks: TaskBatch) -> None:
    """ValueError where the module takes each "task" as the features of one sample.

    A linear layer of S inputs computes with S samples that are single numbers, as well as with
    one sample of S features; but it does not take 2 * S such samples.
    """
    x = tasks.support_x.detach()
    if x.dim() != 2 or not x.is_floating_point():
        return
    if not takes(loop, theta, torch.cat([x[0], x[0]])) and takes(loop, theta, x):
        raise ValueError(
            f"support_x [T, S] = {list(x.shape)} has samples that are single numbers, and the "
            f"module takes S = {x.shape[1]} of them alone. It can take all of {as_one_task(tasks)}"
        )


def check_targets(loss: Loss, outputs: list[int], name: str, y: Tensor) -> None:
    """ValueError or TypeError unless a loss that has a name takes the targets `y`, called `name`.

    Args:
        outputs: the shape of the predictions of a sample.
    """
    if loss == "cross_entropy":
        if y.dtype is not torch.int64:
            raise TypeError(f'loss "cross_entropy" takes int64 labels, and {name} is {y.dtype}')
        if not outputs or list(y.shape[2:]) != outputs[1:]:
            n = name[0].upper()
            raise ValueError(
                f'loss "cross_entropy" takes labels [T, {n}] and predictions [T, {n}, N], or '
                f"[T, {n}, P...] and [T, {n}, N, P...]: {name} is {list(y.shape)} and the "
                f"module's outputs of a sample are {outputs}"
            )
    elif isinstance(loss, str):
        if not y.is_floating_point():
            raise TypeError(f'loss "{loss}" takes floating targets: {name} is {y.dtype}')
        if list(y.shape[2:]) != outputs:
            raise ValueError(
                f'loss "{loss}" takes targets shaped like the predictions: {name} is '
                f"{list(y.shape)}, so {list(y.shape[2:])} a sample, and the module's outputs "
                f"{outputs}"
            )


def _check_loss(loop: InnerLoop, predictions: Tensor, tasks: TaskBatch) -> None:
    if isinstance(loop.loss, str):
        return
    value = support_loss(loop, predictions, tasks)
    if value.shape != (1,):
        raise ValueError(f"loss must return a scalar a task, not {list(value.shape[1:])}")
    if loop.steps and not value.requires_grad:
        raise ValueError("loss does not depend on the predictions in a differentiable way")
