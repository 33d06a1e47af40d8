"""What comes out of a batch of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fastmeta.accuracy import accuracy_of
from fastmeta.backends.registry import requested_backend
from fastmeta.functional.forward import task_by_task, task_forward
from fastmeta.tasks.checks import check_rows
from fastmeta.words import counted, kind_of

__all__ = ["Adapted", "MetaOutput", "check_queries"]


@dataclass(frozen=True)
class MetaOutput:
    """What a meta-learner says about the queries of T tasks.

    Attributes:
        loss: [T], differentiable.
        predictions: [T, Q, O...].
        targets: labels [T, Q] or [T, Q, P...], or [T, Q, O...], as given; padding replaced.
        weight: [T, Q] or None.
        counted: the accuracy [T], where it came with the loss.
    """

    loss: Tensor
    predictions: Tensor
    targets: Tensor
    weight: Tensor | None = None
    counted: Tensor | None = None

    def __repr__(self) -> str:
        """Shapes: the numbers may be many."""
        tensors = ("loss", "predictions", "targets", "weight")
        given = {name: getattr(self, name) for name in tensors}
        shown = [f"{name}={list(x.shape)}" for name, x in given.items() if x is not None]
        return f"{type(self).__name__}({', '.join(shown)}, {self.loss.dtype})"

    @property
    def accuracy(self) -> Tensor:
        """[T]: the share of a task's queries, or their places, whose largest output is the label.

        Of equal outputs the first is the largest. A query with an output that is NaN counts as
        wrong; a label that is no class, as losses ignore some, does not count.

        Raises:
            TypeError: the targets are not class labels.
            ValueError: there are not as many, or it cannot be told which dimension the classes are.
        """
        if self.targets.is_floating_point():
            raise TypeError(
                f"accuracy needs integer class labels, and these targets are {self.targets.dtype} "
                f"{list(self.targets.shape)}"
            )
        if self.counted is not None:
            return self.counted
        return accuracy_of(self.predictions, self.targets, self.weight)

    def detach(self) -> MetaOutput:
        """The same numbers, without the graph that led to them."""
        return replace(
            self,
            loss=self.loss.detach(),
            predictions=self.predictions.detach(),
            counted=None if self.counted is None else self.counted.detach(),
        )


class Adapted:
    """A module with the fast weights of T tasks.

    Attributes:
        parameters: every parameter by name; those that adapted are [T, *shape].

    Args:
        module: gives structure, buffers and mode.
        parameters: as the attribute.
        tasks: T.
        randomness: None (a random layer is an error), "same" or "different" over tasks.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        tasks: int,
        randomness: str | None = None,
    ) -> None:
        self.module = module
        self.parameters = dict(parameters)
        self._tasks = tasks
        self._randomness = randomness

    def __len__(self) -> int:
        return self._tasks

    def __repr__(self) -> str:
        return f"Adapted({type(self.module).__name__}, {counted(len(self), 'task')})"

    def __call__(self, x: Tensor) -> Tensor:
        """Predictions [T, Q, O] for x [T, Q, ...], differentiable into `x` and the fast weights.

        Raises:
            ValueError: `x` is not of T tasks, or the module makes no prediction for each sample.
            TypeError: `x` is not a tensor.
        """
        check_queries(x, self._tasks)
        if requested_backend() == "reference":
            predictions = task_by_task(self.module, self.parameters, x)
        else:
            predictions = task_forward(self.module, self.parameters, x, self._randomness)
        check_rows("x", x.shape[1:], predictions.shape[1:])
        return predictions


def check_queries(x: object, tasks: int) -> None:
    """TypeError or ValueError unless `x` is a tensor [T, Q, ...] for so many tasks."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [T, Q, ...], not {kind_of(x)}")
    if x.dim() < 2 or x.shape[0] != tasks:
        raise ValueError(f"x must be [T, Q, ...] with T = {tasks}, not {list(x.shape)}")
