"""What must hold between a module, a loss and a batch of tasks, checked before any engine runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fastmeta.functional.forward import GLOBAL_BACKWARD_HOOKS, call_module, module_lock
from fastmeta.functional.losses import Loss, takes_weight, task_loss
from fastmeta.functional.written_losses import written_out
from fastmeta.inner_loop.layers import called
from fastmeta.inner_loop.loop import InnerLoop, Rates, check_rates
from fastmeta.inner_loop.randomness import random_state
from fastmeta.tasks import TaskBatch

__all__ = [
    "backward_hooks", "check_dropout", "check_labels", "check_model", "leaves_of_graph",
    "unseen", "uses_others",
]  # fmt: skip


class Checked(NamedTuple):
    outputs: int  # a sample: n_way for a classifier
    loss: Loss  # by its name, where a function writes out one that has a name


def check_model(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> Checked:
    """Run the first task's support once through module and loss, to tell early what cannot work.

    Raises:
        ValueError, TypeError: with the argument's name and the shapes.
    """
    with module_lock:
        _check_parameters(loop, parameters, tasks)
        check_rates(loop, parameters, rates)
        check_dropout(loop)
        if tasks.support_weight is not None or tasks.query_weight is not None:
            _check_weights(loop)
        theta, predictions = _probe(loop, parameters, tasks)
        _check_task_dimension(loop, theta, tasks)
    _check_targets(loop, predictions, tasks)
    check_labels(loop, predictions.shape[-1], tasks)
    _check_loss(loop, predictions, tasks)
    return Checked(predictions.shape[-1], _by_name(loop.loss, predictions, tasks.support_y))


def _by_name(loss: Loss, predictions: Tensor, targets: Tensor) -> Loss:
    """The name of what a function writes out, if with such targets it means the same."""
    name = written_out(loss)
    if name == "cross_entropy":
        fits = targets.dtype is torch.int64 and targets.dim() == predictions.dim() == 2
    else:
        fits = targets.is_floating_point() and targets.shape[2:] == predictions.shape[1:]
    return name if name is not None and fits else loss


def uses_others(loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch) -> bool:
    """Whether the support loss depends on tensors that require grad and were not given to it."""
    with module_lock:
        theta, predictions = _probe(loop, parameters, tasks)
        loss = _loss(loop, predictions, tasks)
    known = {id(theta[name]) for name in loop.adapted}
    return any(id(leaf) not in known for leaf in leaves_of_graph(loss))


def check_labels(loop: InnerLoop, n_way: int, tasks: TaskBatch) -> None:
    """ValueError for a label outside [0, n_way) where the loss takes labels."""
    if loop.loss == "cross_entropy":
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


def _check_parameters(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch
) -> None:
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
            "padding would enter their statistics"
        )


def _probe(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch
) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters of the first task, of which the adapted are variables, and its predictions."""
    theta = {
        name: (p if p.shape == loop.shapes[name] else p[0]).detach()
        for name, p in parameters.items()
    }
    theta |= {name: theta[name].clone().requires_grad_() for name in loop.adapted}
    x = tasks.support_x[0].detach()
    try:
        with torch.enable_grad():
            predictions = _predict_unseen(loop, theta, x)
    except (RuntimeError, IndexError) as error:
        hint = ""
        if _takes(loop, theta, tasks.support_x.detach()):
            hint = f". It can take all of {_forgotten(tasks)}"
        elif x.dim() == 1:
            hint = ". Samples of one feature are [T, S, 1]"
        raise ValueError(
            f"the module cannot take a task's support_x {list(x.shape)} {x.dtype}: {error}{hint}"
        ) from error
    if not isinstance(predictions, Tensor):
        raise TypeError(f"the module must return a tensor, not {type(predictions).__name__}")
    if predictions.dim() < 1 or len(predictions) != len(x):
        raise ValueError(
            f"the module makes {list(predictions.shape)} of a task's support_x {list(x.shape)}; "
            "it must return one prediction a sample, [S, O]"
        )
    if loop.steps and not predictions.requires_grad:
        raise ValueError(f"the predictions do not depend on what adapts: {list(loop.adapted)}")
    return theta, predictions


def _predict_unseen(loop: InnerLoop, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    try:
        with unseen():
            return _predict(loop, theta, x)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # torch.func takes none
            raise
    return _predict(loop, theta, x)


def _predict(loop: InnerLoop, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    x = x.clone()  # nobody's but ours, should the forward write to it
    version = None if x.is_inference() else x._version
    with _same_random_state(x), _unchanged_buffers(loop.module):
        with _no_random_numbers(loop, "the module's forward"):
            predictions = call_module(loop.module, theta, x)
    if version is not None and x._version != version:
        raise ValueError(
            "the module's forward changes its input in place, which every inner step reads again: "
            "let it make a new tensor (x = x - 0.5, nn.ReLU() without inplace=True)"
        )
    return predictions


def _check_task_dimension(
    loop: InnerLoop, theta: Mapping[str, Tensor], tasks: TaskBatch
) -> None:
    """ValueError where the module takes each "task" as the features of one sample.

    A linear layer of S inputs computes with S samples that are single numbers, as well as with
    one sample of S features; but it does not take 2 * S such samples.
    """
    x = tasks.support_x.detach()
    if x.dim() != 2 or not x.is_floating_point():
        return
    if not _takes(loop, theta, torch.cat([x[0], x[0]])) and _takes(loop, theta, x):
        raise ValueError(
            f"support_x [T, S] = {list(x.shape)} has samples that are single numbers, and the "
            f"module takes S = {x.shape[1]} of them alone. It can take all of {_forgotten(tasks)}"
        )


def _takes(loop: InnerLoop, theta: Mapping[str, Tensor], x: Tensor) -> bool:
    """Whether the module makes a prediction for each of these samples."""
    try:
        with torch.no_grad():
            predictions = _predict(loop, theta, x)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    return isinstance(predictions, Tensor) and predictions.shape[:1] == x.shape[:1]


def _forgotten(tasks: TaskBatch) -> str:
    return (
        f"support_x {list(tasks.support_x.shape)} as the samples of one task: did you forget the "
        "task dimension? TaskBatch is [T, S, ...], and one task is support_x[None]"
    )


def _check_targets(loop: InnerLoop, predictions: Tensor, tasks: TaskBatch) -> None:
    y, outputs = tasks.support_y, list(predictions.shape[1:])
    if loop.loss == "cross_entropy":
        if y.dtype is not torch.int64:
            raise TypeError(f'loss "cross_entropy" takes int64 labels, and support_y is {y.dtype}')
        if y.dim() != 2 or predictions.dim() != 2:
            raise ValueError(
                'loss "cross_entropy" takes labels [T, S] and predictions [T, S, N]: support_y is '
                f"{list(y.shape)} and the module's outputs of a sample are {outputs}"
            )
    elif isinstance(loop.loss, str):
        if not y.is_floating_point():
            raise TypeError(f'loss "{loop.loss}" takes floating targets: support_y is {y.dtype}')
        if list(y.shape[2:]) != outputs:
            raise ValueError(
                f'loss "{loop.loss}" takes targets shaped like the predictions: support_y is '
                f"{list(y.shape)}, so {list(y.shape[2:])} a sample, and the module's outputs "
                f"{outputs}"
            )


def _check_loss(loop: InnerLoop, predictions: Tensor, tasks: TaskBatch) -> None:
    if isinstance(loop.loss, str):
        return
    value = _loss(loop, predictions, tasks)
    if value.shape != (1,):
        raise ValueError(f"loss must return a scalar a task, not {list(value.shape[1:])}")
    if loop.steps and not value.requires_grad:
        raise ValueError("loss does not depend on the predictions in a differentiable way")


def _loss(loop: InnerLoop, predictions: Tensor, tasks: TaskBatch) -> Tensor:
    """[1]: the support loss of the first task."""
    weight = None if tasks.support_weight is None else tasks.support_weight[:1].detach()
    targets = tasks.support_y[:1].detach()
    with torch.enable_grad(), unseen(), _same_random_state(predictions):
        with _no_random_numbers(loop, "the loss"):
            return task_loss(loop.loss, predictions.unsqueeze(0), targets, weight)


def unseen() -> AbstractContextManager[None]:
    """Whoever counts the tensors that a call saves, as torch.utils.checkpoint does, shall not count
    those of a probe, which the next call does without.
    """
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def leaves_of_graph(root: Tensor) -> Iterator[Tensor]:
    """The variables that a tensor was computed from."""
    seen, stack = set(), [root.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [following for following, _ in node.next_functions]


@contextmanager
def _unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """ValueError if the block changes a buffer, which is put back. Norms are looked after."""
    before = [
        (owner, name, buffer, buffer._version, buffer.clone())
        for owner in module.modules()
        if not isinstance(owner, _NormBase)
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    yield
    changed = []
    for owner, name, buffer, version, value in before:
        if owner._buffers[name] is not buffer or buffer._version != version:
            owner._buffers[name] = buffer
            with torch.no_grad():
                buffer.copy_(value)
            changed.append(f"{type(owner).__name__}.{name}")
    if changed:
        raise ValueError(
            f"the module's forward changes its buffers ({', '.join(changed)}), which all tasks "
            "share: compute without them, or update them outside of the forward"
        )


@contextmanager
def _no_random_numbers(loop: InnerLoop, name: str) -> Iterator[None]:
    """ValueError if the block draws random numbers that its backward would not draw again."""
    before = random_state()
    yield
    after = random_state()
    if after.of_others != before.of_others:
        raise ValueError(
            f"{name} draws random numbers of Python or NumPy, which a backward does not draw again"
        )
    if after.of_torch != before.of_torch and loop.randomness is None:
        raise ValueError(
            f"{name} draws random numbers: call .eval() on dropout layers, or choose "
            'engine="vmap" with randomness="different" or "same"'
        )


@contextmanager
def _same_random_state(x: Tensor) -> Iterator[None]:
    devices = [] if x.device.type == "cpu" else [x.device]
    with torch.random.fork_rng(devices, device_type="cuda" if not devices else x.device.type):
        yield
