"""The 20 published one-shot runs of Omniglot, with any network that was trained on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta import TaskBatch
from fastmeta.cli.image_data import ImageData
from fastmeta.episodes import ONE_SHOT_RUNS, ImageClasses, one_shot_runs
from fastmeta.training import MetaLearner

WAYS = 20
ROUNDS = 20


def evaluate_one_shot(meta: MetaLearner, ways: int, data: ImageData) -> list[dict[str, Any]]:
    """Print the accuracy of each run, and return the numbers; none if it has too many ways.

    Args:
        meta: trained for tasks of `ways` classes.
        ways: at most 20, or nothing is evaluated.
        data: gives the characters, and which of them were learned from.
    """
    if ways > WAYS:
        print(f"\nthe published one-shot runs have {WAYS} ways, and this network {ways}")
        return []
    runs = one_shot_runs(_all_classes(data), data.scale)
    hits = grouped_scores(meta, runs, ways, ROUNDS).argmax(-1) == runs.query_y
    accuracy = hits.double().mean(1).tolist()
    learned = set(data.splits.train.names)
    rows = [
        {
            "alphabet": run.alphabet,
            "accuracy": value,
            "classes_learned_from": len(learned.intersection(run.classes)),
        }
        for run, value in zip(ONE_SHOT_RUNS, accuracy, strict=True)
    ]
    _print(rows, ways)
    return rows


def grouped_scores(meta: MetaLearner, tasks: TaskBatch, ways: int, rounds: int) -> Tensor:
    """Scores [T, Q, N] of the queries in one-shot tasks of N classes, by a network of fewer ways.

    The classes are dealt at random into groups of `ways`; the network adapts to each group, and
    gives a class its log-probability there. The score is the mean over many rounds: a query's own
    class is likely in each of its groups, another one only where the query's own is missing.
    A network of N ways sees the task as it is, once.

    Args:
        meta: trained for tasks of `ways` classes.
        tasks: one support sample for each of the labels 0 .. N - 1, in this order.
        ways: at most N.
        rounds: how often they are dealt.
    """
    n_classes = tasks.support_y.shape[1]
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(*tasks.query_y.shape, n_classes, device=tasks.query_x.device)
    dealt = torch.zeros(n_classes, device=total.device)
    for _ in range(1 if ways == n_classes else rounds):
        order = torch.randperm(n_classes, generator=generator)
        missing = -n_classes % ways  # the last group is filled with classes of the first
        for group in torch.cat([order, order[:missing]]).split(ways):
            total[..., group] += _outputs(meta, tasks, group).log_softmax(-1)
            dealt[group] += 1
    return total / dealt


def _outputs(meta: MetaLearner, tasks: TaskBatch, group: Tensor) -> Tensor:
    """Outputs [T, Q, ways] for all queries, of the network adapted to some of the classes."""
    labels = torch.arange(len(group), device=tasks.support_x.device).repeat(len(tasks), 1)
    unknown = torch.zeros_like(tasks.query_y)
    part = TaskBatch(tasks.support_x[:, group], labels, tasks.query_x, unknown)
    with torch.no_grad():
        return meta(part).predictions


def _all_classes(data: ImageData) -> ImageClasses:
    return ImageClasses.of({name: side[name] for side in data.splits for name in side.names})


def _print(rows: list[dict[str, Any]], ways: int) -> None:
    print(f"\nthe 20 published one-shot runs, {WAYS} ways within an alphabet")
    if ways < WAYS:
        print(f"(from {ways} ways: mean over {ROUNDS} random deals of the classes into groups)")
    print(f"{'run':<5}{'alphabet':<32}{'accuracy':>8}   classes that were learned from")
    for number, row in enumerate(rows, 1):
        share, learned = f"{100 * row['accuracy']:.0f} %", row["classes_learned_from"]
        print(f"{number:<5}{row['alphabet']:<32}{share:>8}   {learned} of {WAYS}")
    mean = sum(row["accuracy"] for row in rows) / len(rows)
    print(f"{'mean':<37}{f'{100 * mean:.1f} %':>8}")
