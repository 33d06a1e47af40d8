"""What the algorithms have in common that share an encoder and fit only a head to each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from fastmeta.algorithms.classes import asked_ways, count_classes
from fastmeta.algorithms.learner import Learner, check_tasks
from fastmeta.functional.eager import runs_eagerly
from fastmeta.functional.losses import task_loss
from fastmeta.inner_loop.engines.forward import Forward
from fastmeta.tasks import MetaOutput, TaskBatch, check_queries

__all__ = ["Fitted", "SharedEncoder", "check_input"]

# Features [T, Q, D] of queries in, predictions [T, Q, N] out.
Head = TypeVar("Head", bound=Callable[[Tensor], Tensor])


class SharedEncoder(Learner, Generic[Head]):
    """An encoder for all tasks, and a head for each that is fitted to its support features.

    The encoder is an ordinary module, called once a batch on the support and query samples of all
    tasks together, [T * (S + Q), ...]. So norms behave as in the published implementations: in
    train() they use the statistics of all these samples and update the running ones, in eval() they
    use the running ones. A norm without running statistics uses those of the batch in eval() too;
    what is predicted then depends on what is in the batch. Padding does not go through the encoder.
    On a CPU, convolutional encoders that the native kernels know run on them, with the same results
    up to rounding and the same running statistics; `fastmeta.explain` says whether they do.

    Under autocast the encoder alone runs in lower precision: heads are at least float32.

    Args:
        encoder: any module that makes features [n, D] of samples [n, ...].
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be an nn.Module, not {type(encoder).__name__}")
        self.encoder = encoder
        self._run = Forward()

    @runs_eagerly
    def forward(self, tasks: TaskBatch, n_way: int | None = None) -> MetaOutput:
        """Fit a head to each task's support set and judge on its query set.

        Args:
            tasks: T tasks with int64 labels.
            n_way: the number of classes of each; None: as many as the support has labels.

        Returns:
            `loss` [T], the cross-entropy of the queries, and `predictions` [T, Q, N], logits;
            differentiable to any order that the encoder is.

        Raises:
            TypeError: labels that are not int64, inputs of another dtype than the encoder's.
            ValueError: labels outside [0, n_way), a class without support in some task, or
                features that are not [n, D].
        """
        check_tasks(tasks)
        n_way = count_classes(tasks.support_y, tasks.query_y, asked_ways(tasks, n_way))
        features = _featured(tasks, *self.embed(tasks))
        with _full_precision(features.query_x):
            loss, predictions, *accuracy = self._judge(features, n_way)
        return MetaOutput(
            loss, predictions, features.query_y, features.query_weight, *accuracy
        )

    @runs_eagerly
    def adapt(
        self,
        support_x: Tensor,
        support_y: Tensor,
        support_weight: Tensor | None = None,
        *,
        n_way: int | None = None,
    ) -> Fitted[Head]:
        """The heads of T tasks, differentiable end to end.

        Support and, later, query samples go through the encoder by themselves, so a norm that uses
        the statistics of its batch sees other ones than in `forward`.

        Args:
            support_x: [T, S, ...].
            support_y: [T, S] int64.
            support_weight: [T, S]; 0 marks padding.
            n_way: the number of classes of each task; None: as many as there are labels.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        tasks = TaskBatch.of_support(support_x, support_y, support_weight)
        n_way = count_classes(tasks.support_y, None, n_way)
        (support,) = self._encode((tasks.support_x, tasks.support_weight))
        with _full_precision(support):
            head = self._fit(_featured(tasks, support, support), n_way)
        return Fitted(self, head, len(tasks))

    def embed(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """The features of support and query samples as heads get them: [T, S, D], [T, Q, D].

        Padding gets the features of its task's first real sample.
        """
        support, query = self._encode(
            (tasks.support_x, tasks.support_weight), (tasks.query_x, tasks.query_weight)
        )
        return support, query

    def not_native(self, tasks: TaskBatch) -> str | None:
        """None if the native kernels run the encoder on such tasks, else the reason."""
        check_tasks(tasks)
        support = _real_samples(tasks.support_x, tasks.support_weight)
        query = _real_samples(tasks.query_x, tasks.query_weight)
        return self._run.why_not(self.encoder, torch.cat([support, query]))

    def _fit(self, features: TaskBatch, n_way: int) -> Head:
        """The heads of checked tasks, whose inputs are features."""
        raise NotImplementedError

    def _judge(self, features: TaskBatch, n_way: int) -> tuple[Tensor, ...]:
        """Loss [T], predictions [T, Q, N] and, where it comes with them, accuracy [T]."""
        predictions = self._fit(features, n_way)(features.query_x)
        y, weight = features.query_y, features.query_weight
        return task_loss("cross_entropy", predictions, y, weight), predictions

    def _features(self, samples: Tensor) -> Tensor:
        try:
            return self._run(self.encoder, samples)
        except RuntimeError as error:
            if samples.dim() > 1:
                raise
            raise ValueError(
                "inputs [T, S] have samples that are single numbers, which the encoder cannot "
                f"take: did you forget the task dimension? TaskBatch is [T, S, ...] ({error})"
            ) from error

    def _encode(self, *sets: tuple[Tensor, Tensor | None]) -> list[Tensor]:
        """Features [T, n, D] of samples [T, n, ...] with weights [T, n], in one call."""
        rows = [_real_samples(x, weight) for x, weight in sets]
        check_input(self.encoder, rows[0])
        features = self._features(torch.cat(rows))
        count = sum(map(len, rows))
        if not isinstance(features, Tensor):
            raise TypeError(f"encoder must return a tensor, not {type(features).__name__}")
        if features.dim() != 2 or len(features) != count:
            raise ValueError(
                f"encoder must make features [n, D] of samples [n, ...]: of "
                f"{[count, *rows[0].shape[1:]]} it made {list(features.shape)}"
            )
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        parts = features.split([len(part) for part in rows])
        return [_at_places(part, *of) for part, of in zip(parts, sets, strict=True)]


class Fitted(Generic[Head]):
    """An encoder with the heads of T tasks.

    Attributes:
        head: what was fitted, for features [T, Q, D].
    """

    def __init__(self, learner: SharedEncoder[Head], head: Head, tasks: int) -> None:
        self.head = head
        self._learner = learner
        self._tasks = tasks

    def __len__(self) -> int:
        return self._tasks

    def __call__(self, x: Tensor) -> Tensor:
        """Predictions [T, Q, N] for x [T, Q, ...], differentiable into both.

        Raises:
            ValueError: `x` is not of T tasks.
            TypeError: `x` is not a tensor.
        """
        check_queries(x, self._tasks)
        (features,) = self._learner._encode((x, None))
        with _full_precision(features):
            return self.head(features)


def check_input(encoder: nn.Module, x: Tensor) -> None:
    """TypeError unless inputs are on the encoder's device and, but for autocast, of its dtype."""
    kinds = {(parameter.dtype, parameter.device) for parameter in encoder.parameters()}
    if not kinds:
        return
    dtypes, devices = (set(kind) for kind in zip(*kinds, strict=True))
    if x.device not in devices:
        raise TypeError(f"inputs are on {x.device}, the encoder on {_listed(devices)}")
    cast = not x.is_floating_point() or torch.is_autocast_enabled(x.device.type)
    if x.dtype not in dtypes and not cast:
        raise TypeError(f"inputs are {x.dtype}, the encoder's parameters {_listed(dtypes)}")


def _featured(tasks: TaskBatch, support: Tensor, query: Tensor) -> TaskBatch:
    """The tasks seen through features, with weights in their dtype."""
    return tasks.with_inputs(support, query).to(dtype=support.dtype)


def _real_samples(x: Tensor, weight: Tensor | None) -> Tensor:
    """[n, ...]: the samples of all tasks, one after another, without padding."""
    return x.flatten(0, 1) if weight is None else x[weight > 0]


def _at_places(features: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    """[T, n, D]: each sample's features; for padding those of the task's first real sample."""
    if weight is None:
        return features.unflatten(0, x.shape[:2])
    real = weight > 0
    place = real.flatten().cumsum(0).view_as(real) - 1
    first = place.gather(1, real.int().argmax(1, keepdim=True))
    return features[torch.where(real, place, first)]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, values)))


def _full_precision(features: Tensor) -> torch.autocast:
    return torch.autocast(features.device.type, enabled=False)
