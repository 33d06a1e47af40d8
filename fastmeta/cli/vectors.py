"""Vectors: `fastmeta train vectors`, and evaluation of what it trained, beside the raw ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import ProtoNet
from fastmeta.cli.config import meta_config, training_config
from fastmeta.cli.device import chosen_device
from fastmeta.cli.errors import usage_errors
from fastmeta.cli.few_shot import (
    accuracy,
    asked_of_evaluation,
    check_for_learner,
    check_ways,
    described,
    draw_embedding,
    evaluate_tasks,
    print_accuracy,
    queries_left,
    tasks_at_once,
)
from fastmeta.cli.network import vector_config
from fastmeta.cli.setup import Job, load_meta
from fastmeta.episodes import VectorClasses, VectorEpisodes, read_vectors, split_classes
from fastmeta.training import Checkpoint, MetaLearner, interval

SETTINGS = ("features", "labels", "drop_rows", "transform", "test_classes", "validation_classes")
EPISODE = ("ways", "shots", "queries", "eval_ways", "eval_shots", "split_seed")


@dataclass(frozen=True)
class VectorData:
    """Vectors with their split, raw."""

    train: VectorClasses
    validation: VectorClasses
    test: VectorClasses
    told: dict[str, Any]

    def transformed(self, classes: VectorClasses) -> VectorClasses:
        """As networks get them."""
        return classes.map(_transform(self.told["transform"], self.train.features))


# ---- training -----------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, saved: Mapping[str, Any] | None) -> Job:
    """Return the job that the options describe."""
    meta = meta_config(options)
    told = {name: getattr(options, name) for name in (*SETTINGS, *EPISODE)}
    data = _read(options.data, told)
    told |= {"kind": "vectors", "fingerprint": _fingerprint(data)}
    check_ways(options.algorithm, options.ways, options.eval_ways, "--eval-ways")
    eval_ways, eval_shots = (told[f"eval_{name}"] or told[name] for name in ("ways", "shots"))
    source = _episodes("train", data.transformed(data.train), told, options.seed)
    judge, batch = None, 0
    if len(data.validation):
        judge = _judge("validation", data.transformed(data.validation), eval_ways, eval_shots)
        batch = tasks_at_once(eval_ways, eval_shots, judge.queries)
    _judge("test", data.test, eval_ways, eval_shots)  # what cannot be evaluated is told now
    config = {
        "source": told,
        "model": vector_config(options, inputs=data.train.features.shape[1]),
        "meta": meta,
        "training": training_config(options, batch),
    }
    _describe(data, options)
    return Job(source, config, {"data": str(Path(options.data).resolve())}, judge)


def _read(path: str, told: Mapping[str, Any]) -> VectorData:
    arrays = {name: told[name] for name in ("features", "labels", "drop_rows")}
    classes = read_vectors(path, **arrays)
    test, validation = told["test_classes"], told["validation_classes"]
    if test + validation >= 1:
        raise ValueError("--test-classes and --validation-classes leave no class to learn from")
    fractions = (1 - test - validation, validation, test)
    split = split_classes(classes.names, fractions=fractions, seed=told["split_seed"])
    if told["transform"] == "sqrt" and classes.features.min() < 0:
        raise ValueError(f"--transform sqrt: {told['features']} has negative values")
    train, validation, test_side = (classes.select(names) for names in split)
    return VectorData(train, validation, test_side, dict(told))


def _transform(kind: str, learned_from: Tensor) -> Callable[[Tensor], Tensor]:
    if kind == "sqrt":
        return lambda x: 8 * x.sqrt()
    if kind == "standardise":
        deviation, mean = torch.std_mean(learned_from, 0, correction=0)
        deviation = torch.where(deviation == 0, 1, deviation)
        return lambda x: (x - mean) / deviation
    return lambda x: x


def _fingerprint(data: VectorData) -> list[str]:
    return [side.fingerprint() for side in (data.train, data.validation, data.test)]


def _episodes(
    side: str, classes: VectorClasses, told: Mapping[str, Any], seed: int
) -> VectorEpisodes:
    counts = {name: told[name] for name in ("ways", "shots", "queries")}
    try:
        return VectorEpisodes(classes, **counts, seed=seed, device=chosen_device())
    except ValueError as error:
        raise ValueError(f"{side}: {error}") from error


def _judge(
    side: str,
    classes: VectorClasses,
    ways: int,
    shots: int,
    queries: int | None = None,
    seed: int = 0,
) -> VectorEpisodes:
    queries = queries or queries_left(classes.sizes, shots)
    return _episodes(side, classes, dict(ways=ways, shots=shots, queries=queries), seed)


def _describe(data: VectorData, options: argparse.Namespace) -> None:
    n, width = data.train.features.shape
    sides = (len(side) for side in (data.train, data.validation, data.test))
    print(f"vectors   {n} to learn from, {width} numbers each")
    print("classes   {} to learn from, {} for validation, {} for test".format(*sides))
    print(f"tasks     {described(options.ways, options.shots, options.queries)}")


# ---- evaluation ---------------------------------------------------------------------------------


def evaluate(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """Print the accuracy on classes not seen before, beside that of the raw vectors."""
    config = checkpoint.config
    with usage_errors():
        data = _read(options.data or checkpoint.notes["data"], config["source"])
        if _fingerprint(data) != config["source"]["fingerprint"]:
            raise ValueError("these are not the vectors that this checkpoint was trained on")
        meta = load_meta(checkpoint, options.engine)
        check_for_learner(meta, options)
        ways, shots = asked_of_evaluation(config["source"], config["meta"]["algorithm"], options)

        def episodes(classes: VectorClasses) -> VectorEpisodes:
            return _judge("test", classes, ways, shots, options.queries, options.seed)

        test = data.transformed(data.test)
        source = episodes(test)
        _set_features(meta, options.features, data)
    numbers = evaluate_tasks(meta, source, options)
    baselines = {"raw": data.test, data.told["transform"]: test}
    rows = {
        name: interval(accuracy(ProtoNet(nn.Identity()), episodes(classes), numbers["tasks"]))
        for name, classes in baselines.items()
        if name != "none"
    }
    print("\nnearest mean of the support in the same tasks, nothing learned")
    print_accuracy({_name_of_baseline(name): row for name, row in rows.items()})
    draw_embedding(meta, source, options.embedding)
    return {**numbers, "nearest_mean": {name: vars(row) for name, row in rows.items()}}


def _name_of_baseline(name: str) -> str:
    return "raw vectors" if name == "raw" else f"after {name}"


def _set_features(meta: MetaLearner, kind: str, data: VectorData) -> None:
    """Let a ProtoNet compare features as SimpleShot does."""
    if kind != "un":
        assert isinstance(meta, ProtoNet)
        meta.simple_shot([data.transformed(data.train).features] if kind == "cl2n" else None)
