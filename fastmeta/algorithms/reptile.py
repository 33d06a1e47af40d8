"""Reptile: move towards where the tasks' own training ends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastmeta.algorithms.maml import MAML, Names
from fastmeta.functional.forward import module_lock
from fastmeta.functional.losses import Loss, task_loss
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
        with torch.no_grad():
            adapted = self.adapt(
                tasks.support_x, tasks.support_y, tasks.support_weight, inner_steps=inner_steps
            )
            predictions = adapted(tasks.query_x)
            loss = task_loss(self.loss, predictions, tasks.query_y, tasks.query_weight)
        with module_lock:
            parameters = self._parameters_now()
        pull = _pull(parameters, adapted.parameters)
        return MetaOutput(loss + pull, predictions, tasks.query_y, tasks.query_weight)


def _pull(parameters: Mapping[str, Tensor], fast: Mapping[str, Tensor]) -> Tensor | int:
    """[T] zeros, whose gradient in theta is theta - theta_K of each task."""
    ways = [
        ((theta.detach() - fast[name]) * (theta - theta.detach())).flatten(1).sum(1)
        for name, theta in parameters.items()
        if fast[name].dim() > theta.dim()
    ]
    return sum(ways)
