"""Reading a CSV file whose rows belong to tasks, with errors that name line, column and task."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OTHER_DELIMITERS = {";": "';'", "\t": "a tab", "|": "'|'", ",": "','"}
TIME_WORDS = {"time", "date", "datetime", "timestamp"}


@dataclass(frozen=True)
class Table:
    """The numeric content of a CSV file, by row.

    Attributes:
        path: the file.
        task_of_row: the task's name in each row, as written.
        lines: line number in the file on which each row starts.
        features: [rows, D] float64.
        target: [rows] float64.
        feature_names: the D columns used.
        left_out: columns that are not used, each with the reason.
    """

    path: Path
    task_of_row: tuple[str, ...]
    lines: tuple[int, ...]
    features: np.ndarray
    target: np.ndarray
    feature_names: tuple[str, ...]
    left_out: dict[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order of their first row."""
        return tuple(dict.fromkeys(self.task_of_row))

    def rows_of(self, tasks: Collection[str]) -> np.ndarray:
        """Indices of the rows that belong to one of `tasks`."""
        wanted = set(tasks)
        return np.flatnonzero([name in wanted for name in self.task_of_row])

    def fingerprint(self) -> str:
        """SHA-256 of what the table says: columns used, tasks and numbers."""
        digest = hashlib.sha256(repr((self.feature_names, self.task_of_row)).encode())
        digest.update(self.features.tobytes())
        digest.update(self.target.tobytes())
        return digest.hexdigest()


def read_table(
    path: str | Path,
    *,
    task: str,
    target: str,
    features: Sequence[str] | None = None,
    drop: Collection[str] = (),
    keep: Collection[str] = (),
    delimiter: str = ",",
    encoding: str = "utf-8",
) -> Table:
    """Read a CSV file with a header; a byte-order mark is accepted.

    Inputs are the columns named in `features`. Without it they are all columns except `task`,
    `target`, those in `drop`, and those that `default_exclusion` gives a reason to leave out,
    unless named in `keep`.

    Args:
        path: the file.
        task: column that names the task of a row; it is never an input.
        target: column to predict.
        features: exactly these columns are the inputs.
        drop: columns that are not inputs.
        keep: columns that are inputs although `default_exclusion` would leave them out.
        delimiter: one character between cells.
        encoding: of the file.

    Raises:
        ValueError: the file is empty, is not text in `encoding`, a column is missing or occurs
            twice, a row is short or long, or a cell that is used is empty, not a number or not
            finite. The message names the column, the line and the task.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    header, rows, lines = _read_cells(path, delimiter, encoding)
    for name, role in ((task, "task"), (target, "target")):
        _require_column(path, header, name, role, delimiter)
    if task == target:
        raise ValueError(f"the column {task!r} cannot be both task and target")
    used, left_out = _choose_features(path, header, task, target, features, drop, keep, delimiter)

    task_column = header.index(task)
    task_of_row = tuple(row[task_column].strip() for row in rows)
    for name, line in zip(task_of_row, lines, strict=True):
        if not name:
            raise ValueError(f"{path}, line {line}: the task column {task!r} is empty")

    def column(name: str) -> np.ndarray:
        index = header.index(name)
        cells = [row[index] for row in rows]
        return _numbers(path, name, cells, lines, task_of_row)

    return Table(
        path=path,
        task_of_row=task_of_row,
        lines=lines,
        features=np.stack([column(name) for name in used], axis=1),
        target=column(target),
        feature_names=used,
        left_out=left_out,
    )


def default_exclusion(name: str, target: str) -> str | None:
    """Why a column is not an input unless asked for, or None.

    Two rules, both on names alone, so that what is used can be told from the header:

    - a column whose name holds the word time, date, datetime or timestamp says when a row was
      taken, not what was measured (`test_time`);
    - a column that ends in the same word as a target of several words is another form of the
      target (`total_UPDRS` beside `motor_UPDRS`).
    """
    words, target_words = _words(name), _words(target)
    clock = TIME_WORDS.intersection(words)
    if clock:
        return f"its name says {clock.pop()!r}"
    if len(target_words) > 1 and words[-1:] == target_words[-1:]:
        return f"its name ends in {target_words[-1]!r} as the target's does"
    return None


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[\W_]+", name) if word]


def _read_cells(
    path: Path, delimiter: str, encoding: str
) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    if len(delimiter) != 1:
        raise ValueError(f"delimiter must be one character, not {delimiter!r}")
    numbered = list(_numbered_rows(path, delimiter, encoding))
    if not numbered:
        raise ValueError(f"{path} is empty: a header line with column names is needed")
    (_, header), *body = numbered
    header = [name.strip() for name in header]
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path}: the column name {name!r} occurs more than once")
    if not body:
        raise ValueError(f"{path} has a header but no rows")
    for line, row in body:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} cells, but the header has {len(header)} columns"
            )
    lines, rows = zip(*body, strict=True)
    return header, list(rows), lines


def _numbered_rows(path: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which the row starts, its cells); blank lines are passed over."""
    with_mark = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        with path.open(encoding=with_mark, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            start = 1
            for row in reader:
                if row:
                    yield start, row
                start = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {encoding} text (byte {error.start}): name its encoding, e.g. latin-1"
        ) from error
    except LookupError as error:
        raise ValueError(f"unknown encoding {encoding!r}") from error
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _require_column(
    path: Path, header: Sequence[str], name: str, role: str, delimiter: str
) -> None:
    if name in header:
        return
    message = f"{path} has no column {name!r} ({role}); it has {', '.join(map(repr, header))}"
    if len(header) == 1:
        found = [text for mark, text in OTHER_DELIMITERS.items() if mark in header[0]]
        if found:
            message += f": one column only, so the delimiter may be {found[0]}, not {delimiter!r}"
    raise ValueError(message)


def _choose_features(
    path: Path,
    header: Sequence[str],
    task: str,
    target: str,
    features: Sequence[str] | None,
    drop: Collection[str],
    keep: Collection[str],
    delimiter: str,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the columns to use and, for the others, the reason why not."""
    for names, role in ((features or (), "features"), (drop, "drop"), (keep, "keep")):
        for name in names:
            _require_column(path, header, name, role, delimiter)
    if features is not None and len(set(features)) < len(features):
        raise ValueError("a column is named twice in features")
    wanted = {*(features or ()), *keep}
    for name in (task, target):
        if name in wanted:
            raise ValueError(f"the column {name!r} is the task or the target, not an input")
    both = wanted.intersection(drop)
    if both:
        raise ValueError(f"the column {both.pop()!r} is both asked for and dropped")

    def reason(name: str) -> str | None:
        if name == task:
            return "names the task"
        if name == target:
            return "is the target"
        if name in drop:
            return "dropped on request"
        if name in wanted:
            return None
        return "not asked for" if features is not None else default_exclusion(name, target)

    left_out = {name: why for name in header if (why := reason(name))}
    used = tuple(name for name in header if name not in left_out)
    if not used:
        raise ValueError(f"{path}: no column is left as input")
    return used, left_out


def _numbers(
    path: Path, name: str, cells: Sequence[str], lines: Sequence[int], tasks: Sequence[str]
) -> np.ndarray:
    values = np.empty(len(cells))
    for index, cell in enumerate(cells):
        problem = None
        try:
            # float() takes the underscores of Python's literals, a CSV file does not mean them.
            values[index] = math.nan if "_" in cell else float(cell)
        except ValueError:
            no_number = f"{cell!r} is not a number; what is no input is left out by drop (--drop)"
            problem = no_number if cell.strip() else "the cell is empty"
        else:
            if not math.isfinite(values[index]):
                problem = f"{cell!r} is not a finite number"
        if problem:
            where = f"{path}, line {lines[index]}, column {name!r}, task {tasks[index]!r}"
            raise ValueError(f"{where}: {problem}")
    return values
