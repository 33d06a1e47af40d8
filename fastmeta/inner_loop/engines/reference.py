"""The inner loop in plain PyTorch, one task after another: the oracle of every engine.

Differentiable to any order, and takes any module and loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.functional.corrections import OfTask
from fastmeta.functional.forward import call_module
from fastmeta.functional.losses import Loss, needs_weight
from fastmeta.inner_loop.loop import InnerLoop, Rates, rate_at
from fastmeta.tasks import TaskBatch

__all__ = ["adapt", "can_run", "meta_loss"]


def can_run(
    loop: InnerLoop, tasks: TaskBatch | None, parameters: Mapping[str, Tensor], rates: Rates
) -> None:
    """None: it runs everything."""


def adapt(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> dict[str, Tensor]:
    """Every parameter by name; those that adapt [T, *shape], the others as given."""
    x, y, weights = tasks.support_x, tasks.support_y, _each(tasks.support_weight, len(tasks))
    each = [
        _adapt_one(loop, _of_task(loop, parameters, t), rates, x[t], y[t], weight)
        for t, weight in enumerate(weights)
    ]
    fast = {name: torch.stack([theta[name] for theta in each]) for name in loop.adapted}
    return {**parameters, **fast}


def meta_loss(
    loop: InnerLoop, parameters: Mapping[str, Tensor], rates: Rates, tasks: TaskBatch
) -> tuple[Tensor, Tensor]:
    """The query loss [T] and predictions [T, Q, O] of the adapted tasks."""
    fast = adapt(loop, parameters, rates, tasks)
    losses, predictions = [], []
    for t, weight in enumerate(_each(tasks.query_weight, len(tasks))):
        prediction = call_module(loop.module, _of_task(loop, fast, t), tasks.query_x[t], OfTask())
        losses.append(_loss(loop.loss, prediction, tasks.query_y[t], weight))
        predictions.append(prediction)
    return torch.stack(losses), torch.stack(predictions)


def _adapt_one(
    loop: InnerLoop,
    theta: dict[str, Tensor],
    rates: Rates,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
) -> dict[str, Tensor]:
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        theta |= {name: _as_variable(theta[name]) for name in loop.adapted}
        for step in range(loop.steps):
            # A view of each step's own: what the forward makes of its input stays there.
            predictions = call_module(loop.module, theta, x.view_as(x), OfTask())
            loss = _loss(loop.loss, predictions, y, weight)
            gradients = torch.autograd.grad(
                loss,
                [theta[name] for name in loop.adapted],
                create_graph=loop.order == 2,
                materialize_grads=True,
            )
            for name, gradient in zip(loop.adapted, gradients, strict=True):
                theta[name] = theta[name] - rate_at(rates, name, step) * gradient
    return theta if differentiable else {name: p.detach() for name, p in theta.items()}


def _loss(loss: Loss, predictions: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    if not isinstance(loss, str):
        if weight is None and needs_weight(loss):
            weight = predictions.new_ones(len(predictions))
        return loss(predictions, targets) if weight is None else loss(predictions, targets, weight)
    if loss == "cross_entropy":
        samples = F.cross_entropy(predictions, targets, reduction="none")
    elif loss == "mse":
        samples = F.mse_loss(predictions, targets, reduction="none")
    else:
        samples = F.binary_cross_entropy_with_logits(predictions, targets, reduction="none")
    samples = samples.reshape(len(samples), -1).mean(1)
    return samples.mean() if weight is None else (weight * samples).sum() / weight.sum()


def _of_task(loop: InnerLoop, parameters: Mapping[str, Tensor], t: int) -> dict[str, Tensor]:
    ranks = {name: len(shape) for name, shape in loop.shapes.items()}
    return {name: p if p.dim() == ranks[name] else p[t] for name, p in parameters.items()}


def _each(weight: Tensor | None, tasks: int) -> Any:
    return [None] * tasks if weight is None else weight


def _as_variable(parameter: Tensor) -> Tensor:
    # A view: the gradient is then the partial one, though one parameter may depend on another.
    if parameter.requires_grad:
        return parameter.view_as(parameter)
    return parameter.detach().requires_grad_()
