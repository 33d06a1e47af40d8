"""Images: `fastmeta train omniglot` and its like, and evaluation of what it trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import MAML
from fastmeta.cli.errors import usage_errors
from fastmeta.cli.image_data import ImageData, data_of_checkpoint, data_of_options
from fastmeta.cli.network import image_config
from fastmeta.cli.one_shot import evaluate_one_shot
from fastmeta.cli.setup import Job, load_meta, meta_config, training_config
from fastmeta.episodes import ImageClasses, ImageEpisodes
from fastmeta.training import (
    Checkpoint,
    Interval,
    accuracy_by_step,
    adaptation_seconds,
    interval,
)

# For validation and evaluation, whatever the training has.
QUERIES = 15
TASKS, TASKS_AT_ONCE = 600, 20


# ---- training -----------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, saved: Mapping[str, Any] | None) -> Job:
    """Return the job that the options describe."""
    data = data_of_options(options)
    channels, size = _shape(data.splits.train)
    train, validation, test = data.splits
    source = data.episodes("train", train, options.queries, options.seed)
    judge = None
    if len(validation):
        judge = _judge(data, "validation", validation, options.seed)
    _judge(data, "test", test, seed=0)  # what cannot be evaluated is told now
    config = {
        "source": data.told,
        "model": image_config(options, channels, size),
        "meta": meta_config(options),
        "training": training_config(options, TASKS_AT_ONCE if judge else 0),
    }
    _describe(data, options)
    return Job(source, config, notes=data.places, validation=judge)


def _judge(data: ImageData, side: str, classes: ImageClasses, seed: int) -> ImageEpisodes:
    """Episodes with as many queries as the smallest class has, but no more than 15."""
    spare = int(classes.sizes.min()) - data.told["shots"]
    return data.episodes(side, classes, min(QUERIES, max(spare, 1)), seed)


def _shape(classes: ImageClasses) -> tuple[int, int]:
    channels, height, width = classes.images.shape[1:]
    if height != width:
        raise ValueError(f"images must be square, not {height}x{width}: resize them")
    return channels, height


def _describe(data: ImageData, options: argparse.Namespace) -> None:
    train, validation, test = (len(side) for side in data.splits)
    turned = "" if options.rotations == "none" else ", turned by quarters too"
    shape = "x".join(map(str, data.splits.train.images.shape[1:]))
    print(f"images    {len(data.splits.train.images)} to learn from, {shape}")
    print(f"classes   {train} to learn from, {validation} for validation, {test} for test{turned}")
    print(f"tasks     {_described(options.ways, options.shots, options.queries)}")


def _described(ways: int, shots: int, queries: int) -> str:
    plural = "" if shots == 1 else "s"
    return f"{ways} ways, {shots} shot{plural}, {queries} queries a class"


# ---- evaluation ---------------------------------------------------------------------------------


def evaluate(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Print the accuracy by inner step on classes not seen before, and return the numbers."""
    with usage_errors():
        data = data_of_checkpoint(checkpoint.config["source"], checkpoint.notes, options.data)
        meta = load_meta(checkpoint, options.engine)
        source = _judge(data, "test", data.splits.test, options.seed)
        steps = options.inner_steps or _steps(meta)
        accuracy = _accuracy(meta, source, options.tasks or TASKS, steps)
    print(f"{accuracy.shape[1]} tasks of {source.n_classes} classes that were not learned from,")
    print(f"{_described(source.ways, source.shots, source.queries)}\n")
    rows = [interval(row) for row in accuracy]
    _print(rows, meta.inner_steps)
    seconds = adaptation_seconds(meta, source.sample(TASKS_AT_ONCE))
    print(f"\nadaptation: {seconds * 1e6:.3g} us a task ({TASKS_AT_ONCE} tasks at once)")
    numbers = {
        "accuracy_by_step": [vars(row) for row in rows],
        "inner_steps": meta.inner_steps,
        "tasks": accuracy.shape[1],
        "queries": source.queries,
        "adaptation_seconds_per_task": seconds,
    }
    if data.told["kind"] == "omniglot":
        numbers["one_shot_runs"] = evaluate_one_shot(meta, data.told["ways"], data)
    return numbers


def _steps(meta: MAML) -> int:
    """Beyond those of training, as MAML's paper: 3 for 1, 10 for 5; rates a step end there."""
    return meta.inner_steps if meta.per_step_lr else max(3, 2 * meta.inner_steps)


def _accuracy(meta: MAML, source: ImageEpisodes, tasks: int, steps: int) -> Tensor:
    """Accuracy [steps + 1, tasks]."""
    parts = range(0, tasks, TASKS_AT_ONCE)
    found = [
        accuracy_by_step(meta, source.sample(min(TASKS_AT_ONCE, tasks - first)), steps)
        for first in parts
    ]
    return torch.cat(found, dim=1)


def _print(rows: Sequence[Interval], trained: int) -> None:
    print(f"{'inner steps':<13}{'accuracy':<10} 95 % interval over tasks")
    for step, row in enumerate(rows):
        mean, low, high = (100 * value for value in (row.mean, row.low, row.high))
        mark = "   as in training" if step == trained else ""
        print(f"{step:<13}{mean:6.2f} %   {low:.2f} .. {high:.2f}{mark}")
