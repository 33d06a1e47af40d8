"""How MAML runs batches that are alike: what was decided for the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.backends.looks import looks
from fastmeta.functional.forward import call_module
from fastmeta.inner_loop.choose import Choice, Engine
from fastmeta.inner_loop.loop import InnerLoop, Rates
from fastmeta.inner_loop.memory import telling_how_to_shrink
from fastmeta.inner_loop.prefix import Prefix
from fastmeta.inner_loop.reading.counters import counters_put_back
from fastmeta.inner_loop.reading.differs import is_alike
from fastmeta.tasks import TaskBatch

__all__ = [
    "Plan", "above", "adapt", "autocast", "is_exact", "kinds_of", "looks_of", "meta_gradient",
    "meta_loss", "rate_kinds", "saves_much",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How to run every batch like one that was looked at."""

    loop: InnerLoop
    choice: Choice
    prefix: Prefix | None  # the layers below the inner loop, run once a batch
    n_way: int
    rate_kinds: Any
    renames_loss: bool  # a function that writes it out goes by its name

    @property
    def engine(self) -> Engine:
        return self.choice.engine


def meta_gradient(
    plan: Plan, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> tuple[Tensor, Tensor, bool]:
    """Loss, predictions, and whether the engine has added the gradients of the mean loss."""
    accumulate = getattr(plan.engine, "accumulate_gradients", None)
    if accumulate is not None and plan.prefix is None:
        with telling_how_to_shrink(plan.loop, tasks.support_x):
            found = accumulate(plan.loop, parameters, rates, tasks)
        if found is not None:
            return *found, True
    return *meta_loss(plan, parameters, rates, tasks), False


def meta_loss(
    plan: Plan, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> tuple[Tensor, Tensor]:
    with telling_how_to_shrink(plan.loop, tasks.support_x):
        inner, tasks = above(plan.prefix, plan.loop, parameters, tasks)
        return plan.engine.meta_loss(plan.loop, inner, rates, tasks)


def adapt(
    plan: Plan, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> dict[str, Tensor]:
    """Every parameter by name, those that adapt as fast weights."""
    with telling_how_to_shrink(plan.loop, tasks.support_x):
        inner, tasks = above(plan.prefix, plan.loop, parameters, tasks)
        fast = plan.engine.adapt(plan.loop, inner, rates, tasks)
    return {**parameters, **fast}


def above(
    prefix: Prefix | None, loop: InnerLoop, parameters: Mapping[str, Tensor], tasks: TaskBatch
) -> tuple[Mapping[str, Tensor], TaskBatch]:
    """Parameters and tasks as the inner loop above `prefix` sees them."""
    if prefix is None:
        return parameters, tasks
    own = {name: parameters[name] for name in loop.shapes}
    return own, prefix.features(parameters, tasks)


def is_exact(
    cut: tuple[Prefix, nn.Module], module: nn.Module, parameters: Mapping[str, Tensor],
    tasks: TaskBatch,
) -> bool:  # fmt: skip
    """Whether the halves of a forward make of the first task's samples what the whole makes."""
    prefix, above = cut
    if type(prefix.forward.module) is nn.Sequential:  # its children, and not a copy of its forward
        return True
    own = {name: parameters[name] for name in prefix.names}
    rest = {name: parameters[name] for name, _ in above.named_parameters()}
    try:
        with torch.no_grad(), counters_put_back(module):
            for x in (tasks.support_x[0], tasks.query_x[0]):
                between = call_module(prefix.forward.module, own, x.clone())
                if not between.is_floating_point() or between.shape[0] != len(x):
                    return False
                whole = call_module(module, parameters, x.clone())
                if not is_alike(whole, call_module(above, rest, between)):
                    return False
    except Exception:  # of the user's code, which ran whole before: it is left whole
        return False
    return True


def saves_much(
    prefix: Prefix, steps: int, parameters: Mapping[str, Tensor], tasks: TaskBatch
) -> bool:
    """Whether the resident engine would take longer with what is below the inner loop in it.

    A step of it does that once more, while around a prefix there is a millisecond of autograd.
    """
    x = tasks.support_x
    if x.device.type != "cpu":
        return True
    from torch.utils.flop_counter import FlopCounterMode  # which takes a while to import

    own = {name: parameters[name].detach() for name in prefix.names}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call_module(prefix.forward.module, own, x[0].detach())
    return counter.get_total_flops() * len(x) * steps >= _LEAST_SAVED


# By docs/notes/cpu-kernels.md, "What lies below".
_LEAST_SAVED = 4e7  # flops


def looks_of(parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch) -> tuple[Any, ...]:
    """Of all tensors of a call, which weights there are, and the rate where it is a number."""
    tensors = [
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, *parameters.values()
    ]  # fmt: skip
    support_weight, query_weight = tasks.support_weight, tasks.query_weight
    if support_weight is not None:
        tensors.append(support_weight)
    if query_weight is not None:
        tensors.append(query_weight)
    rate: Any = None
    if isinstance(rates, dict):  # to ask for a Mapping takes ten times as long
        tensors += rates.values()
    else:
        rate = type(rates), rates
    return looks(tensors), support_weight is None, query_weight is None, rate


def kinds_of(parameters: Mapping[str, Tensor], tasks: TaskBatch) -> tuple[Any, ...]:
    """What of the parameters and of the tasks a plan depends on."""
    x, y = tasks.support_x, tasks.support_y
    return (
        x.dtype, x.device, x.shape[2:], y.dtype,
        y.shape[2:], y.requires_grad, tasks.query_y.requires_grad,
        _kind(tasks.support_weight), _kind(tasks.query_weight),
        *[(p.requires_grad, p.dtype, p.device, p.shape) for p in parameters.values()],
    )  # fmt: skip


def autocast() -> Any:
    """Which devices have it on, or False."""
    if not torch._C._is_any_autocast_enabled():
        return False
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def rate_kinds(rates: Rates) -> Any:
    """What of the rates was checked: all of a number, form alone of tensors."""
    if isinstance(rates, Mapping):
        return [(rate.dtype, rate.device, rate.shape) for rate in rates.values()]
    return type(rates), rates


def _kind(weight: Tensor | None) -> bool | None:
    return None if weight is None else weight.requires_grad
