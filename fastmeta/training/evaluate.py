"""How good a meta-learner is on tasks it has not seen, with intervals over the tasks."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmeta.algorithms import MAML, ProtoMAML
from fastmeta.algorithms.learner import in_evaluation
from fastmeta.episodes import TableEpisodes
from fastmeta.functional.losses import mse_loss
from fastmeta.tasks import TaskBatch
from fastmeta.training.learner import MetaLearner


@dataclass(frozen=True)
class Interval:
    """A mean over tasks and its confidence interval (95 % unless asked otherwise)."""

    mean: float
    low: float
    high: float

    def sqrt(self) -> Interval:
        """The same for the root of the mean (RMSE from MSE); the interval is cut at 0."""
        root = (math.sqrt(max(value, 0.0)) for value in (self.mean, self.low, self.high))
        return Interval(*root)


def interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean of `values` [T], the tasks being a sample of many.

    With one task the interval is infinitely wide.
    """
    mean = values.double().mean().item()
    count = len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    error = values.double().std().item() / math.sqrt(count)
    half = student_t(count - 1, confidence) * error
    return Interval(mean, mean - half, mean + half)


@functools.cache
def student_t(degrees: int, confidence: float = 0.95) -> float:
    """Return t such that Student's variable lies in [-t, t] with this probability.

    With t = sqrt(degrees) * tan(angle) the density becomes cos(angle)^(degrees - 1), which is
    summed here; exact to 6 digits and more.
    """
    # Nearly all mass lies within a few multiples of this width.
    widest = min(math.pi / 2, 40 / math.sqrt(degrees))
    angle = np.linspace(0.0, widest, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    quantile = np.interp(confidence * mass[-1], mass, angle)
    return math.sqrt(degrees) * math.tan(quantile)


def error_by_step(meta: MAML, tasks: TaskBatch, steps: int) -> Tensor:
    """Return the mean squared query error after 0, 1, ..., `steps` inner steps, [steps + 1, T]."""
    with torch.no_grad():
        return torch.stack(
            [
                mse_loss(meta(tasks, inner_steps=k).predictions, tasks.query_y, tasks.query_weight)
                for k in range(steps + 1)
            ]
        )


def accuracy_by_step(meta: MAML | ProtoMAML, tasks: TaskBatch, steps: int) -> Tensor:
    """Return the query accuracy after 0, 1, ..., `steps` inner steps, [steps + 1, T]."""
    with torch.no_grad():
        return torch.stack([meta(tasks, inner_steps=k).accuracy for k in range(steps + 1)])


def cross_validated_error(
    tasks: Sequence[str],
    fit: Callable[[Sequence[str]], MAML],
    episodes: Callable[[Sequence[str]], TableEpisodes],
    *,
    folds: int,
    draws: int = 10,
) -> float:
    """Return the mean squared query error on tasks that `fit` was not given.

    Task i is in fold ``i % folds``; each fold is left out once.

    Args:
        tasks: at least two.
        fit: trains a meta-learner on these tasks.
        episodes: gives episodes of these tasks.
        folds: at least two; no more than tasks are used.
        draws: of the support rows of each task left out.
    """
    folds = min(folds, len(tasks))
    errors = []
    for fold in range(folds):
        left_out = tasks[fold::folds]
        meta = fit([task for task in tasks if task not in left_out])
        source = episodes(left_out)
        for _ in range(draws):
            batch = source.sample()
            with torch.no_grad():
                errors.append(mse_loss(meta(batch).predictions, batch.query_y, batch.query_weight))
    return torch.cat(errors).mean().item()


def adaptation_seconds(meta: MetaLearner, tasks: TaskBatch, repeats: int = 5) -> float:
    """Return the seconds that adapting to one task takes when T tasks are adapted at once.

    The fastest of `repeats` calls after one to warm up, divided by T.
    """
    support = (tasks.support_x, tasks.support_y, tasks.support_weight)
    times = []
    with torch.no_grad(), in_evaluation(meta):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            meta.adapt(*support)
            if tasks.support_x.is_cuda:
                torch.cuda.synchronize(tasks.support_x.device)
            times.append(time.perf_counter() - start)
    return min(times[1:]) / len(tasks)
