"""How good a meta-learner is on tasks that it has not seen, and how fast it adapts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmeta.algorithms import MAML, ProtoMAML
from fastmeta.algorithms.learner import in_evaluation
from fastmeta.episodes import TableEpisodes
from fastmeta.functional.losses import mse_loss
from fastmeta.tasks import TaskBatch
from fastmeta.training.learner import MetaLearner


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
