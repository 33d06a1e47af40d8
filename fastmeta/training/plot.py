"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.training.curve import Row

LOSS, VALIDATION = "#1f5fa8", "#d1335b"


def check_picture(path: str | Path) -> None:
    """Raise ValueError unless the ending of `path` names a format that `plot_curve` can write."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    formats = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in formats:
        raise ValueError(f"{path} is no picture: its name must end in one of {', '.join(formats)}")


def plot_curve(rows: Sequence[Row], path: str | Path) -> None:
    """Draw a learning curve: the loss, and beside it the validation accuracy if there is one.

    Args:
        rows: as `read_curve` gives them, at least one.
        path: the picture, of a format that its ending names.

    Raises:
        ValueError: no rows, or an unknown format.
        OSError: the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("a curve without rows cannot be drawn")
    judged = any(row[3] is not None for row in rows)
    figure = Figure(figsize=(11 if judged else 6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    _draw_loss(panels[0], rows)
    if judged:
        _draw(panels[1], rows, column=3)
    for panel, name in zip(panels, ("loss", "validation accuracy"), strict=False):
        panel.set(xlabel="meta-step", ylabel=name)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def _draw_loss(panel: Any, rows: Sequence[Row]) -> None:
    step, loss = np.array([row[:2] for row in rows], dtype=float).T
    width = max(1, len(rows) // 100)
    ends = np.arange(width - 1, len(rows), width)
    panel.plot(step, loss, color=LOSS, alpha=0.2, linewidth=0.8)
    mean = np.add.reduceat(loss[: len(ends) * width], ends - width + 1) / width
    label = "training" if width == 1 else f"training, mean of {width} steps"
    panel.plot(step[ends], mean, color=LOSS, label=label)
    if any(row[2] is not None for row in rows):
        _draw(panel, rows, column=2)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(_tick)
    panel.yaxis.set_minor_formatter(_tick)


def _tick(value: float, _: int) -> str:
    """0.1, 0.2, 0.5, 1, ... instead of powers of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _draw(panel: Any, rows: Sequence[Row], column: int) -> None:
    points = [(row[0], row[column]) for row in rows if row[column] is not None]
    panel.plot(*zip(*points, strict=True), "o-", markersize=3, color=VALIDATION, label="validation")
