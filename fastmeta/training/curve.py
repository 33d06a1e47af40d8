"""Learning curves as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fastmeta.training.checkpoint import write_atomically
from fastmeta.training.validation import Score

COLUMNS = ("step", "loss", "validation_loss", "validation_accuracy")
HEADER = ",".join(COLUMNS) + "\n"

Row = tuple[int, float, float | None, float | None]


class Curve:
    """The loss of every step, and the validation scores, as a CSV file.

    Its columns are `COLUMNS`; a step that was not validated leaves the last two empty. Rows are
    added at the end of the file when the run saves; before that a file that is there stays.

    Args:
        path: the file. One that is there is replaced, if it is a curve.
        after: keep what the file says up to this step (0: begin anew).

    Raises:
        ValueError: the file is there but is no such curve.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path, *, after: int = 0) -> None:
        self.path = Path(path)
        known = read_curve(self.path) if self._exists() else []
        self._begin: str | None = HEADER + _as_text([row for row in known if row[0] <= after])
        self._new: list[Row] = []

    def add(self, step: int, loss: float, score: Score | None = None) -> None:
        """Note the loss of a step, and its score if it was validated."""
        scores = (None, None) if score is None else (score.loss, score.accuracy)
        self._new.append((step, loss, *scores))

    def flush(self) -> None:
        """Write what was noted."""
        new, self._new = _as_text(self._new), []
        if self._begin is None:
            with self.path.open("a") as file:
                file.write(new)
        else:
            write_atomically(self.path, (self._begin + new).encode())
            self._begin = None

    def _exists(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0


def read_curve(path: str | Path) -> list[Row]:
    """Return the rows of a curve. One that was cut off as its writer was killed is left out.

    Raises:
        ValueError: the file is no curve.
        OSError: it cannot be opened.
    """
    path = Path(path)
    header, *lines = path.read_text(errors="replace").splitlines(keepends=True) or [""]
    try:
        if header != HEADER:
            raise ValueError(f"its first line is not {HEADER.strip()!r}")
        return [_row(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path} is no training curve: {error}") from error


def _row(line: str) -> Row:
    step, loss, *scores = line.rstrip("\n").split(",")
    validation_loss, accuracy = (float(text) if text else None for text in scores)
    return int(step), float(loss), validation_loss, accuracy


def _as_text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
