"""Evaluation of classifiers on tasks of classes that they did not learn from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastmeta import MAML, ProtoMAML, ProtoNet
from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.cli.errors import result_written
from fastmeta.cli.files import check_writable
from fastmeta.cli.learners import ANY_WAYS
from fastmeta.tasks import TaskBatch
from fastmeta.training import (
    Interval,
    MetaLearner,
    accuracy_by_step,
    adaptation_seconds,
    check_picture,
    in_evaluation,
    interval,
    plot_embedding,
)
from fastmeta.words import adaptation_time, counted

# For validation and evaluation, whatever the training has.
QUERIES = 15
TASKS, TASKS_AT_ONCE = 600, 20
# So many samples go through an encoder at a time: their activations fill no machine's memory.
SAMPLES_AT_ONCE = 1500
DRAWN_TASKS = 6


class Episodes(Protocol):
    """A source of few-shot tasks."""

    ways: int
    shots: int
    queries: int
    n_classes: int

    def sample(self, n_tasks: int) -> TaskBatch:
        """Draw the next tasks."""
        ...


def tasks_at_once(ways: int, shots: int, queries: int) -> int:
    """How many tasks one call of an encoder takes."""
    return max(1, min(TASKS_AT_ONCE, SAMPLES_AT_ONCE // (ways * (shots + queries))))


def queries_left(sizes: Tensor, shots: int) -> int:
    """As many queries as the smallest class has beside the shots, but from 1 to 15."""
    return min(QUERIES, max(int(sizes.min()) - shots, 1))


def asked_of_evaluation(
    told: Mapping[str, Any], algorithm: str, options: argparse.Namespace
) -> tuple[int, int]:
    """Return ways and shots of the tasks to evaluate on.

    Args:
        told: settings of the source, with those of the training's tasks.
        algorithm: by its name on the command line.
        options: of `evaluate`.

    Raises:
        ValueError: ways that the learner's head has not.
    """
    check_ways(algorithm, told["ways"], options.ways, "--ways")
    ways = options.ways or told["eval_ways"] or told["ways"]
    return ways, options.shots or told["eval_shots"] or told["shots"]


def check_ways(algorithm: str, trained: int, asked: int | None, option: str) -> None:
    """Raise ValueError if a learner's head has another number of outputs than asked for."""
    if asked not in (None, trained) and algorithm not in ANY_WAYS:
        raise ValueError(
            f"{option} {asked}: the head of {algorithm} has {trained} outputs, one for each class "
            f"of its training tasks; {', '.join(ANY_WAYS)} take any number of classes"
        )


def check_for_learner(meta: MetaLearner, options: argparse.Namespace) -> None:
    """Raise ValueError or OSError if `evaluate` was asked for what it cannot do."""
    if options.embedding:
        check_picture(options.embedding)
        if not isinstance(meta, SharedEncoder):
            raise ValueError("--embedding: this network has no features that tasks share")
        check_writable(Path(options.embedding))
    if options.features != "un" and not isinstance(meta, ProtoNet):
        raise ValueError("--features: only protonet has prototypes of its features")
    if options.inner_steps and isinstance(meta, SharedEncoder):
        raise ValueError("--inner-steps: this network has no inner loop")


def described(ways: int, shots: int, queries: int) -> str:
    """Return what a task is, in words."""
    per_class = f"{counted(queries, 'query', 'queries')} a class"
    return f"{counted(ways, 'way')}, {counted(shots, 'shot')}, {per_class}"


def evaluate_tasks(
    meta: MetaLearner, source: Episodes, options: argparse.Namespace
) -> dict[str, Any]:
    """Print the accuracy, by inner step where there are some, and return the numbers."""
    tasks = options.tasks or TASKS
    print(f"{counted(tasks, 'task')} of {source.n_classes} classes that were not learned from,")
    print(f"{described(source.ways, source.shots, source.queries)}\n")
    numbers: dict[str, Any] = {"tasks": tasks, "ways": source.ways, "shots": source.shots}
    numbers["queries"] = source.queries
    if isinstance(meta, SharedEncoder):
        row = interval(accuracy(meta, source, tasks))
        print_accuracy({"new classes": row})
        numbers["accuracy"] = vars(row)
    else:
        numbers |= _by_step(meta, source, tasks, options.inner_steps)
    at_once = tasks_at_once(source.ways, source.shots, 0)
    seconds = adaptation_seconds(meta, source.sample(at_once))
    print(f"\nadaptation: {adaptation_time(seconds, at_once)}")
    return {**numbers, "adaptation_seconds_per_task": seconds}


def accuracy(meta: SharedEncoder[Any], source: Episodes, tasks: int) -> Tensor:
    """[tasks], in eval() mode: what is predicted does not depend on the tasks beside it."""
    at_once = tasks_at_once(source.ways, source.shots, source.queries)
    with torch.no_grad(), in_evaluation(meta):
        parts = [
            meta(source.sample(min(at_once, tasks - first))).accuracy
            for first in range(0, tasks, at_once)
        ]
    return torch.cat(parts)


def print_accuracy(rows: Mapping[str, Interval]) -> None:
    """Print a line for each, with its name."""
    width = max(13, *(len(name) + 2 for name in rows))
    print(f"{'':<{width}}{'accuracy':<10} 95 % interval over tasks")
    for name, row in rows.items():
        print(f"{name:<{width}}{_percent(row)}")


def draw_embedding(meta: MetaLearner, source: Episodes, path: str | None) -> None:
    """Draw some tasks as the encoder sees them, if there is a path for it."""
    if path is None:
        return
    assert isinstance(meta, SharedEncoder)
    with in_evaluation(meta), result_written(path):
        plot_embedding(meta, source.sample(DRAWN_TASKS), path)
    print(f"\nembedding: {DRAWN_TASKS} tasks with their prototypes, drawn in {path}")


def _by_step(
    meta: MAML | ProtoMAML, source: Episodes, tasks: int, steps: int | None
) -> dict[str, Any]:
    steps = steps or _steps(meta)
    found = [
        accuracy_by_step(meta, source.sample(min(TASKS_AT_ONCE, tasks - first)), steps)
        for first in range(0, tasks, TASKS_AT_ONCE)
    ]
    rows = [interval(row) for row in torch.cat(found, dim=1)]
    _print_steps(rows, meta.inner_steps)
    return {"accuracy_by_step": [vars(row) for row in rows], "inner_steps": meta.inner_steps}


def _steps(meta: MAML | ProtoMAML) -> int:
    """Beyond those of training, as MAML's paper: 3 for 1, 10 for 5; rates a step end there."""
    ends = isinstance(meta, MAML) and meta.per_step_lr
    return meta.inner_steps if ends else max(3, 2 * meta.inner_steps)


def _print_steps(rows: Sequence[Interval], trained: int) -> None:
    print(f"{'inner steps':<13}{'accuracy':<10} 95 % interval over tasks")
    for step, row in enumerate(rows):
        mark = "   as in training" if step == trained else ""
        print(f"{step:<13}{_percent(row)}{mark}")


def _percent(row: Interval) -> str:
    mean, low, high = (100 * value for value in (row.mean, row.low, row.high))
    return f"{mean:6.2f} %   {low:.2f} .. {high:.2f}"
