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
# So many colours can be told apart; a class beyond them has one again, with the next marker.
COLOURS, MARKERS = 10, "os^Dv<>pP*"


def plot_embedding(meta: SharedEncoder[Any], tasks: TaskBatch, path: str | Path) -> None:
    """Draw the features of each task's samples, in the plane where they vary most.

    A panel a task: each prototype (the mean of a class's support) as a number, its label; the
    queries as marks, each with a line to the prototype of its class; the support as larger marks,
    framed; a cross is on each query that is classified wrongly. A label has the same colour and
    mark in every panel. The axes are the first two principal components of the task's support and
    queries, and say how much of the variance they hold. The learner is used in the mode that it is
    in: call ``meta.eval()`` before for what holds in evaluation.

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
    side = 4.2 if out.predictions.shape[-1] <= COLOURS else 6.5  # inches
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for t, panel in enumerate(panels[: len(tasks)]):
        _draw(panel, features[t], out.predictions[t])
        panel.set_title(f"task {t + 1}: {out.accuracy[t]:.0%} right")
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    _add_legend(figure)
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
    support_y, query_y = (
        y[real].cpu().numpy()
        for y, real in ((task.support_y[0], known), (task.query_y[0], asked))
    )
    few = n_way <= COLOURS
    for label, star in enumerate(stars):
        look = look_of(label)
        own = query[query_y == label]
        _connect(panel, own, star, look["color"])
        panel.scatter(*own.T, s=22 if few else 16, alpha=0.8, linewidths=0, **look)
        panel.scatter(*support[support_y == label].T, s=60 if few else 40, ec="black", **look)
    panel.scatter(*query[~right].T, c="black", marker="x", s=26, linewidths=0.9, zorder=3)
    for label, star in enumerate(stars):
        _write(panel, star, str(label), look_of(label)["color"])
    x, y = shares.tolist()
    panel.set(xlabel=f"{x:.0%} of variance", ylabel=f"{y:.0%}", xticks=[], yticks=[])


def _real(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Which samples of the only task are no padding, [n]."""
    return torch.ones_like(labels[0], dtype=torch.bool) if weight is None else weight[0] > 0


def look_of(label: int) -> dict[str, str]:
    """Colour and marker, of which 100 labels have each their own."""
    return {"color": f"C{label % COLOURS}", "marker": MARKERS[label // COLOURS % len(MARKERS)]}


def _connect(panel: Any, points: np.ndarray, centre: np.ndarray, colour: str) -> None:
    """Faint lines, drawn below everything."""
    ends = np.stack([points, np.broadcast_to(centre, points.shape)])
    panel.plot(*ends.transpose(2, 0, 1), color=colour, alpha=0.25, linewidth=0.7, zorder=0)


def _write(panel: Any, place: np.ndarray, text: str, colour: str) -> None:
    box = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.9}
    panel.text(*place, text, size=8, weight="bold", ha="center", va="center", bbox=box, zorder=4)


def _add_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    black, grey = ({"color": colour, "linestyle": ""} for colour in ("black", "0.5"))
    marks: dict[str, dict[str, Any]] = {
        "number: prototype of that label": {"marker": "$0$", "markeredgewidth": 0, **black},
        "support": {"marker": "o", "markersize": 8, "markeredgecolor": "black", **grey},
        "query, with a line to its class": {"marker": "o", "markersize": 5, **grey},
        "classified wrongly": {"marker": "x", **black},
    }
    lines = [Line2D([], [], label=label, **look) for label, look in marks.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
