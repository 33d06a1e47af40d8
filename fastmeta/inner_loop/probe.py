"""A trial run of module and loss on the first task, after which all is as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import _disable_current_modes

from fastmeta.functional.forward import call_module, module_lock
from fastmeta.functional.losses import task_loss
from fastmeta.inner_loop.loop import InnerLoop
from fastmeta.inner_loop.randomness import random_state
from fastmeta.inner_loop.writes import unchanged_parameters
from fastmeta.tasks import TaskBatch
from fastmeta.tasks.checks import check_rows

__all__ = [
    "as_one_task", "hidden_from_saved_tensor_hooks", "leaves_of_graph", "predictions_of", "probe",
    "support_loss", "takes", "uses_others",
]  # fmt: skip


def probe(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch
) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters of the first task, of which the adapted are variables, and its predictions.

    Raises:
        ValueError, TypeError: the module does not make a prediction for each of its samples.
    """
    theta = _of_first_task(loop, parameters)
    predictions = _predictions(loop, theta, tasks, "support_x")
    if loop.steps and not predictions.requires_grad:
        raise ValueError(f"the predictions do not depend on what adapts: {list(loop.adapted)}")
    return theta, predictions


def predictions_of(
    loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch, name: str
) -> Tensor:
    """What the module makes of the first task's samples `name`, "support_x" or "query_x".

    Raises:
        ValueError, TypeError: as `probe`.
    """
    return _predictions(loop, _of_first_task(loop, parameters), tasks, name)


def _of_first_task(loop: InnerLoop, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies: a forward may write to them.
    theta = {
        name: (p if p.shape == loop.shapes[name] else p[0]).detach().clone()
        for name, p in parameters.items()
    }
    for name in loop.adapted:
        theta[name].requires_grad_()
    return theta


def _predictions(
    loop: InnerLoop, theta: Mapping[str, Tensor], tasks: TaskBatch, name: str
) -> Tensor:
    x = getattr(tasks, name)[0].detach()
    try:
        with torch.enable_grad():
            predictions = _hidden(lambda: _predict(loop, theta, x))
    except (RuntimeError, IndexError) as error:
        hint = _hint(loop, theta, tasks) if name == "support_x" else ""
        raise ValueError(
            f"the module cannot take a task's {name} {list(x.shape)} {x.dtype}: {error}{hint}"
        ) from error
    _check_predictions(predictions, x, name)
    return predictions


def _hint(loop: InnerLoop, theta: Mapping[str, Tensor], tasks: TaskBatch) -> str:
    if takes(loop, theta, tasks.support_x.detach()):
        return f". It can take all of {as_one_task(tasks)}"
    if tasks.support_x.dim() == 2:
        return ". Samples of one feature are [T, S, 1]"
    whole = not tasks.support_x.is_floating_point()
    return ". support_x.float() has floating numbers" if whole else ""


def _check_predictions(predictions: object, x: Tensor, name: str) -> None:
    if not isinstance(predictions, Tensor):
        raise TypeError(f"the module must return a tensor, not {type(predictions).__name__}")
    check_rows(name, x.shape, predictions.shape)


def takes(loop: InnerLoop, theta: Mapping[str, Tensor], x: Tensor) -> bool:
    """Whether the module makes a prediction for each of these samples."""
    try:
        with torch.no_grad():
            predictions = _predict(loop, theta, x)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    return isinstance(predictions, Tensor) and predictions.shape[:1] == x.shape[:1]


def as_one_task(tasks: TaskBatch) -> str:
    """What a sentence says of tasks that look like the samples of one."""
    return (
        f"support_x {list(tasks.support_x.shape)} as the samples of one task: did you forget the "
        "task dimension? TaskBatch is [T, S, ...], and one task is support_x[None]"
    )


def support_loss(loop: InnerLoop, predictions: Tensor, tasks: TaskBatch) -> Tensor:
    """[1]: the support loss of the first task."""
    weight = None if tasks.support_weight is None else tasks.support_weight[:1].detach()
    targets = tasks.support_y[:1].detach()

    def run() -> Tensor:
        with _same_random_state(predictions), _no_random_numbers(loop, "the loss"):
            return task_loss(loop.loss, predictions.unsqueeze(0), targets, weight)

    with torch.enable_grad():
        try:
            value: object = _hidden(run)
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(loop.loss, str):
                raise
            value = error
        if isinstance(value, Tensor):
            return value
        weights = [] if weight is None else [weight[0]]
        misused = _misused(loop.loss, predictions, targets[0], *weights)
    if isinstance(value, Exception) and misused is None:
        raise value
    raise TypeError(misused) from (value if isinstance(value, Exception) else None)


def _misused(loss: Any, predictions: Tensor, *others: Tensor) -> str | None:
    """What is wrong with a loss that cannot be computed, where that is told by a call of it."""
    result = _result(loss, predictions, *others)
    if not isinstance(result, (Tensor, Exception)):
        way_out = ": leave .item() and float() out" if isinstance(result, (int, float)) else ""
        return (
            "loss must return a tensor that holds one number, and returns a "
            f"{type(result).__name__}{way_out}"
        )
    if isinstance(result, Tensor):
        return None
    targets, *weights = others
    turned = _result(loss, targets, predictions, *weights)
    fits = isinstance(turned, Tensor) and turned.shape == () and turned.requires_grad
    if not fits:
        return None
    return "loss is called as loss(predictions, targets), and takes them the other way round"


def _result(loss: Any, *arguments: Tensor) -> object:
    try:
        return loss(*arguments)
    except Exception as error:
        return error


def uses_others(loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch) -> bool:
    """Whether the support loss depends on tensors that require grad and were not given to it."""
    with module_lock:
        theta, predictions = probe(loop, parameters, tasks)
        loss = support_loss(loop, predictions, tasks)
    known = {id(theta[name]) for name in loop.adapted}
    return any(id(leaf) not in known for leaf in leaves_of_graph(loss))


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


def _hidden(run: Callable[[], Tensor]) -> Tensor:
    try:
        with hidden_from_saved_tensor_hooks():
            return run()
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # torch.func takes none
            raise
    return run()


def _predict(loop: InnerLoop, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    x = x.clone()  # nobody's but ours, should the forward write to it
    version = None if x.is_inference() else x._version
    with module_lock, _same_random_state(x), _unchanged_buffers(loop.module):
        with unchanged_parameters(loop.module, theta) as left:
            with _no_random_numbers(loop, "the module's forward"):
                predictions = _called(loop.module, theta, x, left)
    if version is not None and x._version != version:
        raise ValueError(
            "the module's forward changes its input in place, which every inner step reads again: "
            "let it make a new tensor (x = x - 0.5, nn.ReLU() without inplace=True)"
        )
    return predictions


def _called(
    module: nn.Module, theta: Mapping[str, Tensor], x: Tensor, left: dict[str, Tensor]
) -> Tensor:
    try:
        return call_module(module, theta, x, left=left)
    except ValueError as error:  # of the forward: told of with the samples, as other errors are
        raise RuntimeError(str(error)) from error


def hidden_from_saved_tensor_hooks() -> AbstractContextManager[None]:
    """Hide a trial run from saved-tensor hooks: torch.utils.checkpoint counts saved tensors, and
    its second run makes no trial.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        return nullcontext()
    return saved_tensors_hooks(_detached, lambda tensor: tensor)


def _detached(tensor: Tensor) -> Tensor:
    """An operation that saves its result would hold itself, which no collector sees."""
    with _disable_current_modes():  # whoever reads the forward need not see it
        return tensor.detach()


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
            f"{name} draws random numbers: call .eval() on dropout layers, draw them outside and "
            'join them to the inputs, or choose engine="vmap" with randomness="different" or "same"'
        )


@contextmanager
def _same_random_state(x: Tensor) -> Iterator[None]:
    devices = [] if x.device.type == "cpu" else [x.device]
    with torch.random.fork_rng(devices, device_type="cuda" if not devices else x.device.type):
        yield
