"""Images: `fastmeta train omniglot` and its like, and evaluation of what it trained."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastmeta import ProtoNet
from fastmeta.cli.config import meta_config, training_config
from fastmeta.cli.errors import usage_errors
from fastmeta.cli.few_shot import (
    SAMPLES_AT_ONCE,
    TASKS_AT_ONCE,
    asked_of_evaluation,
    check_for_learner,
    check_ways,
    described,
    draw_embedding,
    evaluate_tasks,
    queries_left,
    tasks_at_once,
)
from fastmeta.cli.image_data import ImageData, data_of_checkpoint, data_of_options
from fastmeta.cli.learners import ANY_WAYS
from fastmeta.cli.network import image_config
from fastmeta.cli.one_shot import WAYS, evaluate_one_shot
from fastmeta.cli.options.algorithms import METRIC
from fastmeta.cli.setup import Job, load_meta
from fastmeta.episodes import ImageClasses, ImageEpisodes
from fastmeta.training import Checkpoint, MetaLearner, in_evaluation

# ---- training -----------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, saved: Mapping[str, Any] | None) -> Job:
    """Return the job that the options describe."""
    meta = meta_config(options)
    check_ways(options.algorithm, options.ways, options.eval_ways, "--eval-ways")
    data = data_of_options(options)
    channels, size = _shape(data.splits.train)
    train, validation, test = data.splits
    counts = {name: data.told[name] for name in ("ways", "shots", "queries")}
    source = data.episodes("train", train, options.seed, **counts)
    ways, shots = (data.told[f"eval_{name}"] or counts[name] for name in ("ways", "shots"))
    judge, batch = None, 0
    if len(validation):
        judge = _judge(data, "validation", validation, options.seed, ways, shots)
        metric = options.algorithm in METRIC
        batch = tasks_at_once(ways, shots, judge.queries) if metric else TASKS_AT_ONCE
    _judge(data, "test", test, 0, ways, shots)  # what cannot be evaluated is told now
    config = {
        "source": data.told,
        "model": image_config(options, channels, size),
        "meta": meta,
        "training": training_config(options, batch),
    }
    _describe(data, options)
    return Job(source, config, notes=data.places, validation=judge)


def _judge(
    data: ImageData,
    side: str,
    classes: ImageClasses,
    seed: int,
    ways: int,
    shots: int,
    queries: int | None = None,
) -> ImageEpisodes:
    queries = queries or queries_left(classes.sizes, shots)
    return data.episodes(side, classes, seed, ways=ways, shots=shots, queries=queries)


def _shape(classes: ImageClasses) -> tuple[int, int]:
    channels, height, width = classes.images.shape[1:]
    if height != width:
        raise ValueError(
            f"images must be square, not {height}x{width}: resize them, or, if that is no height "
            "and width, lay the images out as [n, H, W, C]"
        )
    return channels, height


def _describe(data: ImageData, options: argparse.Namespace) -> None:
    train, validation, test = (len(side) for side in data.splits)
    turned = "" if options.rotations == "none" else ", turned by quarters too"
    shape = "x".join(map(str, data.splits.train.images.shape[1:]))
    print(f"images    {len(data.splits.train.images)} to learn from, {shape}")
    print(f"classes   {train} to learn from, {validation} for validation, {test} for test{turned}")
    print(f"tasks     {described(options.ways, options.shots, options.queries)}")


# ---- evaluation ---------------------------------------------------------------------------------


def evaluate(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Print the accuracy on classes not seen before, and return the numbers."""
    told, algorithm = checkpoint.config["source"], checkpoint.config["meta"]["algorithm"]
    told = {"eval_ways": None, "eval_shots": None, **told}
    with usage_errors():
        data = data_of_checkpoint(told, checkpoint.notes, options.data)
        meta = load_meta(checkpoint, options.engine)
        check_for_learner(meta, options)
        ways, shots = asked_of_evaluation(told, algorithm, options)
        test = data.splits.test
        source = _judge(data, "test", test, options.seed, ways, shots, options.queries)
    _set_features(meta, options.features, data)
    numbers = evaluate_tasks(meta, source, options)
    draw_embedding(meta, source, options.embedding)
    if told["kind"] == "omniglot":
        with in_evaluation(meta):
            ways = WAYS if algorithm in ANY_WAYS else told["ways"]
            numbers["one_shot_runs"] = evaluate_one_shot(meta, ways, data)
    return numbers


def _set_features(meta: MetaLearner, kind: str, data: ImageData) -> None:
    """Let a ProtoNet compare features as SimpleShot does."""
    if kind != "un":
        assert isinstance(meta, ProtoNet)
        meta.simple_shot(_learned_from(data) if kind == "cl2n" else None)


def _learned_from(data: ImageData) -> Iterator[Tensor]:
    """Every image to learn from, turned too where turned classes are classes."""
    turns = range(4 if data.told["rotations"] != "none" else 1)
    for images in data.splits.train.images.split(SAMPLES_AT_ONCE):
        for k in turns:
            yield data.scale(torch.rot90(images, k, (-2, -1)))
