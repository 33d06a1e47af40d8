"""Labels that a loss was read for, of int64 targets or among floating ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.loss_programs import (
    CrossEntropyAtPlaces,
    Label,
    LossProgram,
    ReadLoss,
)
from fastmeta.tasks import TaskBatch

__all__ = ["NoSuchClass", "check_target_labels"]


class NoSuchClass(ValueError):
    """A label for which the loss as it was written raises an error, too."""


def check_target_labels(loss: Any, tasks: TaskBatch) -> None:
    """ValueError unless the loss does with these targets what its program does; once a batch.

    Raises:
        NoSuchClass: nor does the loss itself take them.
    """
    if not isinstance(loss, ReadLoss) or tasks.support_y.device.type != "cpu":
        return  # the CPU's kernels run losses that were read
    if isinstance(loss, CrossEntropyAtPlaces):
        return _check_places(loss, tasks)
    labels = loss.labels if isinstance(loss, LossProgram) else ()
    if not labels:
        return
    ways = None if tasks.support_y.is_floating_point() else tasks.known_ways
    if ways is not None and all(ways <= label.below for label in labels):
        return
    if tasks.knows_labels(labels):
        return
    for name in ("support_y", "query_y"):
        targets = getattr(tasks, name).detach()
        columns = targets.reshape(*targets.shape[:2], -1)
        for label in labels:
            _check(name, label, columns[:, :, label.column])
    tasks.note_labels(labels)


def _check_places(loss: CrossEntropyAtPlaces, tasks: TaskBatch) -> None:
    key = "at places", loss.classes, loss.ignored, loss.weights
    if tasks.knows_labels(key):
        return
    for name in ("support_y", "query_y"):
        labels = getattr(tasks, name).flatten(1)
        counts = labels != loss.ignored
        inside = (labels >= 0) & (labels < loss.classes)
        if not (inside | ~counts).all():
            raise ValueError(f"{name} has labels outside [0, {loss.classes})")
        if loss.weights:
            counts &= labels.new_tensor(loss.weights, dtype=torch.float64)[labels * counts] > 0
        if not counts.any(1).all():
            raise ValueError(f"{name} has a task of whose labels none counts in the loss")
    tasks.note_labels(key)


def _check(name: str, label: Label, values: Tensor) -> None:
    low, high = (float(bound) for bound in values.aminmax())
    cut = values.trunc() if values.is_floating_point() else values  # as .long() does
    whole = cut is values or bool((cut == values).all())
    if label.least <= low and high < label.below and whole:
        return
    outside = ~values.isfinite() | (cut >= label.below)
    if label.strict:
        outside |= cut < label.least
    if label.is_class and outside.any():
        task, sample = outside.nonzero()[0].tolist()
        raise NoSuchClass(
            f"{name} has a label outside [0, {label.below}), the classes that the loss picks from: "
            f"{float(values[task, sample]):.7g} for sample {sample} of task {task}, at place "
            f"{label.column} of its targets"
        )
    raise ValueError(
        f"{name} has numbers that the loss cuts off, or labels below 0, at place {label.column} of "
        "its targets"
    )
