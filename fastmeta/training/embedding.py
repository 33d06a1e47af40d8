"""A picture of how an encoder sees tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.algorithms.shared_encoder import SharedEncoder
from fastmeta.functional.prototypes import prototypes
from fastmeta.tasks import TaskBatch

COLUMNS = 3


def plot_embedding(meta: SharedEncoder[Any], tasks: TaskBatch, path: str | Path) -> None:
    """Draw the features of each task's samples, in the plane where they vary most.

    A panel a task: its queries as dots, its support as circles, the prototypes (the means of the
    support of each class) as stars; a cross is on each query that is classified wrongly. The axes
    are the first two principal components of the task's support and queries, and say how much of
    the variance they hold. The learner is used in the mode that it is in: call ``meta.eval()``
    before for what holds in evaluation.

    Args:
        meta: `ProtoNet`, `MatchingNet` or `R2D2`.
        tasks: what to draw; a few are enough.
        path: the picture, of a format that its ending names.

    Raises:
        ValueError, TypeError: tasks that do not fit the learner, or an unknown format.
        OSError: the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with torch.no_grad():
        out = meta(tasks)
        features = tasks.with_inputs(*meta.embed(tasks)).to(dtype=torch.float64)
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.2 * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for t, panel in enumerate(panels[: len(tasks)]):
        _draw(panel, features[t], out.predictions[t])
        panel.set_title(f"task {t + 1}: {out.accuracy[t]:.0%} right")
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    figure.supxlabel("star: prototype, circle: support, dot: query, cross: classified wrongly")
    figure.savefig(path, dpi=150)


def project(support: Tensor, query: Tensor, means: Tensor) -> tuple[list[Tensor], Tensor]:
    """Support [S, D], query [Q, D] and means [N, D] in the plane of the first two, [., 2] each.

    Also the share of the variance that each of the two axes holds, [2]. Signs are such that the
    largest part of an axis is positive, so that a picture can be repeated.
    """
    samples = torch.cat([support, query])
    centre = samples.mean(0)
    _, spread, axes = torch.linalg.svd(samples - centre, full_matrices=False)
    axes, variance = axes[:2], spread.square()
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    missing = 2 - len(axes)
    axes = torch.nn.functional.pad(axes, (0, 0, 0, missing))
    shares = variance / variance.sum().clamp_min(torch.finfo(variance.dtype).tiny)
    shares = torch.nn.functional.pad(shares[:2], (0, missing))
    return [(x - centre) @ axes.T for x in (support, query, means)], shares


def _draw(panel: Any, task: TaskBatch, predictions: Tensor) -> None:
    """One task, whose inputs are features."""
    n_way = predictions.shape[-1]
    means = prototypes(task.support_x, task.support_y, n_way, task.support_weight)[0]
    known = _real(task.support_y, task.support_weight)
    asked = _real(task.query_y, task.query_weight)
    points, shares = project(task.support_x[0][known], task.query_x[0][asked], means)
    support, query, stars = (place.cpu().numpy() for place in points)
    right = (predictions.argmax(-1) == task.query_y[0])[asked].cpu().numpy()
    colour = _colours(n_way)
    support_y, query_y = task.support_y[0][known].cpu(), task.query_y[0][asked].cpu()

    panel.scatter(*query.T, c=colour[query_y], s=14, alpha=0.7)
    panel.scatter(*query[~right].T, c="black", marker="x", s=22, linewidths=0.8)
    panel.scatter(*support.T, c=colour[support_y], s=50, edgecolors="black")
    panel.scatter(*stars.T, c=colour, marker="*", s=240, edgecolors="black")
    x, y = shares.tolist()
    panel.set(xlabel=f"{x:.0%} of variance", ylabel=f"{y:.0%}", xticks=[], yticks=[])


def _real(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Which samples of the only task are no padding, [n]."""
    return torch.ones_like(labels[0], dtype=torch.bool) if weight is None else weight[0] > 0


def _colours(classes: int) -> np.ndarray:
    from matplotlib import colormaps

    if classes <= 10:
        return colormaps["tab10"](np.arange(classes))
    return colormaps["gist_rainbow"](np.linspace(0, 1, classes))
