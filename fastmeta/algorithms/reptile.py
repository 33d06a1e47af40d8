"""Reptile: move towards where the tasks' own training ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.algorithms.learner import check_tasks
from fastmeta.algorithms.maml import MAML, Names
from fastmeta.functional.eager import runs_eagerly
from fastmeta.functional.forward import module_lock
from fastmeta.functional.losses import Loss, named, task_loss
from fastmeta.inner_loop.checks import check_targets
from fastmeta.tasks import MetaOutput, TaskBatch

__all__ = ["Reptile"]


class Reptile(MAML):
    """Reptile (Nichol, Achiam, Schulman 2018, algorithm 2), with SGD in the inner loop.

    The loss has the value of the adapted tasks' query loss and, by construction, the gradient
    theta - theta_K: after ``out.loss.mean().backward()`` every parameter holds
    theta - mean(theta_K), so any optimizer works as it does for MAML, and SGD with rate epsilon
    is the paper's theta + epsilon * mean(theta_K - theta). The queries have no part in learning.

    Args:
        model, inner_lr, inner_steps, loss, adapt_parameters, engine, precision, randomness: of
            `MAML`. The paper takes more than one inner step: with one it is joint training.

    Equivalent to::

        for t in range(T):
            theta_K = sgd(theta, support_x[t], support_y[t])
            loss[t] = query_loss(theta_K)
            theta.grad += (theta - theta_K) / T
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        loss: Loss = "cross_entropy",
        adapt_parameters: Names | None = None,
        engine: str = "auto",
        precision: str = "fp32",
        randomness: str | None = None,
    ) -> None:
        super().__init__(
            model,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            loss=loss,
            order=1,
            adapt_parameters=adapt_parameters,
            engine=engine,
            precision=precision,
            randomness=randomness,
        )

    @runs_eagerly
    def forward(self, tasks: TaskBatch, inner_steps: int | None = None) -> MetaOutput:
        """Adapt to each task's support set and judge on its query set; see the class.

        Args:
            tasks: T tasks on the model's device, in its dtype.
            inner_steps: instead of the number given at construction.

        Returns:
            `loss` [T], with the gradient above, and `predictions` [T, Q, O], with none.

        Raises:
            ValueError, TypeError: tasks that do not fit the model or the loss.
        """
        check_tasks(tasks)
        with torch.no_grad():
            adapted = self.adapt(
                tasks.support_x, tasks.support_y, tasks.support_weight, inner_steps=inner_steps
            )
            with torch.enable_grad():  # of which the model may take some of its own
                predictions = adapted(tasks.query_x).detach()
            targets = tasks.query_y
            own = named(self.loss, targets)
            check_targets(own, list(predictions.shape[2:]), "query_y", targets)
            loss = task_loss(own, predictions, targets, tasks.query_weight)
        with module_lock:
            parameters = self._parameters_now()
        pull = _pull(parameters, adapted.parameters)
        return MetaOutput(loss + pull, predictions, tasks.query_y, tasks.query_weight)


def _pull(parameters: Mapping[str, Tensor], fast: Mapping[str, Tensor]) -> Tensor | int:
    """[T] zeros, whose gradient in theta is theta - theta_K of each task."""
    adapted = [name for name, theta in parameters.items() if fast[name].dim() > theta.dim()]
    if not adapted:
        return 0
    return _Pull.apply(*(fast[name] for name in adapted), *(parameters[name] for name in adapted))


class _Pull(torch.autograd.Function):
    """(theta_K [T, *shape] ..., theta ...) -> [T] zeros"""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_zeros(len(tensors[0]))

    @staticmethod
    @runs_eagerly
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of Reptile's loss is theta - theta_K by construction, and has no "
                "derivative of its own; create_graph=True asks for that. The way out: fm.MAML"
            )
        tensors = ctx.saved_tensors
        fast, thetas = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        pulls = [
            ((theta - theta_k) * grad.reshape(-1, *[1] * theta.dim())).sum(0)
            for theta_k, theta in zip(fast, thetas, strict=True)
        ]
        return *[None] * len(fast), *pulls
