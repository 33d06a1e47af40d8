"""What meta-learners share: a meta-step in one call, a check of its tasks, eval() for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastmeta.functional.eager import runs_eagerly
from fastmeta.tasks import MetaOutput, TaskBatch

__all__ = ["Learner", "backward_of_mean", "check_tasks", "in_evaluation"]


class Learner(nn.Module):
    """A module that judges a batch of tasks: called with a `TaskBatch`, it gives a `MetaOutput`."""

    @runs_eagerly
    def forward_backward(self, tasks: TaskBatch, *args: Any, **options: Any) -> MetaOutput:
        """Judge the tasks and add the gradients of their mean loss to every `.grad`.

        For training loops: the same bits as a call and ``loss.mean().backward()``, and less time
        where an algorithm can leave out PyTorch's autograd, which for few small tasks takes longer
        than the tasks. As there, gradients add up until ``optimizer.zero_grad()``.

        For anything else call the learner and use autograd: weights of the tasks and other outer
        losses, ``create_graph=True``, `torch.amp.GradScaler`, and hooks on nodes of the graph, as
        DistributedDataParallel has them. Hooks on tensors and modules run.

        Args:
            tasks: T tasks, as the learner's call takes them.
            *args, **options: of the learner's call.

        Returns:
            `loss` [T] and `predictions` [T, Q, ...], detached.

        Raises:
            ValueError, TypeError: as the call; no `.grad` is changed then.
            RuntimeError: there is nothing to differentiate, under `torch.no_grad()` for example.

        Equivalent to::

            out = learner(tasks, **options)
            out.loss.mean().backward()
            return out.detach()
        """
        out = self(tasks, *args, **options)
        backward_of_mean(out.loss)
        return out.detach()


def check_tasks(tasks: object) -> None:
    """TypeError unless they are a `TaskBatch`."""
    if not isinstance(tasks, TaskBatch):
        raise TypeError(
            f"tasks must be a TaskBatch(support_x, support_y, query_x, query_y), not "
            f"{type(tasks).__name__}"
        )


def backward_of_mean(loss: Tensor) -> None:
    """Add the gradients of the tasks' mean loss to every `.grad`."""
    if not loss.requires_grad:
        raise RuntimeError(
            "there are no gradients to add, since the loss does not require grad: torch.no_grad() "
            "is in force, or nothing that is learned requires grad"
        )
    loss.mean().backward()


@contextmanager
def in_evaluation(meta: nn.Module) -> Iterator[None]:
    """Inside the block `meta` is in eval() mode: no dropout, norms by their running statistics."""
    training = meta.training
    meta.eval()
    try:
        yield
    finally:
        meta.train(training)
