"""Tasks from a table in which one column names the task: a patient, a shop, a machine.

From a file to a batch of tasks::

    table = read_table("visits.csv", task="patient", target="score")
    train, held_out = split_tasks(table.tasks, held_out=0.25, seed=0)
    scale = Standardisation.of(table, train)
    batch = TableEpisodes(table, train, scale, shots=5, seed=0).sample(16)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmeta.counts import check_seed, whole_number
from fastmeta.episodes.csv_table import Table
from fastmeta.tasks import TaskBatch

# Standard deviations from the mean.
INPUT_LIMIT = 5.0
SUPPORT_NORMS = (1.0, 1.5, 2.0, 3.0)


# ---- splitting and scaling ----------------------------------------------------------------------


def split_tasks(
    tasks: Sequence[str], *, held_out: float = 0.25, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split tasks by name into (meta-train, held out).

    Tasks are ordered by the SHA-256 of ``"{seed}:{name}"`` and the first
    ``round(held_out * n)``, at least one, are held out. So the split depends on the names and the
    seed only: neither on the order of rows nor on the machine or a library's generator.

    Raises:
        ValueError: `held_out` is not in (0, 1), or either side would be empty.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1, not {held_out}")
    names = sorted(set(tasks), key=lambda name: _digest(seed, name))
    count = max(1, round(held_out * len(names)))
    if count >= len(names):
        raise ValueError(
            f"{len(names)} task(s) cannot be split with held_out={held_out}: "
            "at least one task must remain on either side"
        )
    return tuple(names[count:]), tuple(names[:count])


def _digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


@dataclass(frozen=True)
class Standardisation:
    """Mean and scale of each input and of the target over the rows of the meta-train tasks.

    Inputs that are constant there have no scale and are left out (`constant`).
    """

    feature_names: tuple[str, ...]
    feature_mean: tuple[float, ...]
    feature_scale: tuple[float, ...]
    target_mean: float
    target_scale: float
    constant: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Table, tasks: Sequence[str]) -> Standardisation:
        """Measure on the rows of `tasks`.

        Raises:
            ValueError: the target or every input is constant over these rows, or a column's
                numbers are too large to be scaled.
        """
        rows = table.rows_of(tasks)
        x, y = table.features[rows], table.target[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            feature_scale, target_scale = x.std(axis=0), y.std()
        named = zip(("target", *table.feature_names), (target_scale, *feature_scale), strict=True)
        for name, scale in named:
            if not np.isfinite(scale):
                raise ValueError(
                    f"{table.path}: the numbers of {name!r} are too large to be scaled"
                )
        if np.ptp(y) == 0 or target_scale == 0:
            raise ValueError(f"the target is {y[0]} in every row of the meta-train tasks")
        # Rounding can give a constant column a tiny spread, and a tiny spread can round to 0.
        varies = (np.ptp(x, axis=0) > 0) & (feature_scale > 0)
        if not varies.any():
            raise ValueError("every input column is constant over the meta-train tasks")
        names = np.array(table.feature_names, dtype=object)
        return cls(
            feature_names=tuple(names[varies]),
            feature_mean=tuple(x[:, varies].mean(axis=0).tolist()),
            feature_scale=tuple(feature_scale[varies].tolist()),
            target_mean=float(y.mean()),
            target_scale=float(target_scale),
            constant=tuple(names[~varies]),
        )

    def features(self, table: Table) -> np.ndarray:
        """Return the inputs of every row in units of the meta-train tasks, [rows, D].

        They are cut at `INPUT_LIMIT`: one wild number in a support row would make the inner loop
        diverge, since its gradient grows with the square of the input.
        """
        missing = [name for name in self.feature_names if name not in table.feature_names]
        if missing:
            raise ValueError(f"{table.path} lacks the input column {missing[0]!r}")
        columns = [table.feature_names.index(name) for name in self.feature_names]
        scaled = (table.features[:, columns] - self.feature_mean) / self.feature_scale
        return np.clip(scaled, -INPUT_LIMIT, INPUT_LIMIT)

    def target(self, table: Table) -> np.ndarray:
        """Return the target of every row in units of the meta-train tasks, [rows]."""
        return (table.target - self.target_mean) / self.target_scale


# ---- episodes -----------------------------------------------------------------------------------


class TableEpisodes:
    """Episodes over tasks of a table: `shots` random rows are support, the other rows query.

    Tasks have different numbers of rows, so the query side is padded with zeros and
    ``query_weight`` is 0 on the padding. Inputs and targets are standardised.

    Args:
        table: the rows.
        tasks: the tasks to draw from.
        scale: as measured on the meta-train tasks.
        shots: support rows a task.
        support_norm: support rows are weighted such that their weighted mean target is their
            centre in this norm (`centre_weights`); 2: all alike, and no weights are given.
        seed: seed of the stream of episodes.
        dtype: a floating dtype.
        device: where episodes go. They are drawn on the CPU, alike for every device.

    Raises:
        ValueError: a task is unknown or has fewer than ``shots + 1`` rows, `tasks` is empty, or
            `support_norm` is below 1.
    """

    def __init__(
        self,
        table: Table,
        tasks: Sequence[str],
        scale: Standardisation,
        *,
        shots: int = 5,
        support_norm: float = 2.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shots = whole_number("shots", shots)
        _check_norm(support_norm)
        if not tasks:
            raise ValueError("tasks is empty")
        check_rows(table, tasks, shots)
        self.tasks = tuple(tasks)
        self.shots = shots
        self.support_norm = support_norm
        self.device = torch.device(device)
        self._generator = torch.Generator().manual_seed(check_seed(seed))
        self._x, self._y, self._present = _padded(table, self.tasks, scale, dtype)

    def sample(self, n_tasks: int | None = None) -> TaskBatch:
        """Draw `n_tasks` different tasks (all of them by default) and a support set for each.

        Returns support [T, shots, D], [T, shots, 1] and query [T, Q, D], [T, Q, 1] with
        query_weight [T, Q], where Q is the largest number of query rows among the tasks drawn.

        Raises:
            ValueError: `n_tasks` is not in 1..number of tasks.
        """
        available = len(self.tasks)
        if n_tasks is not None:
            n_tasks = whole_number("n_tasks", n_tasks)
        if n_tasks is not None and n_tasks > available:
            raise ValueError(f"n_tasks must be in 1..{available}, not {n_tasks}")
        chosen = torch.randperm(available, generator=self._generator)[:n_tasks]
        if n_tasks is None or n_tasks == available:
            chosen = torch.arange(available)
        return self._episode(chosen)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands: the state of its generator (uint8)."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that `state_dict` gave."""
        self._generator.set_state(state["generator"])

    def _episode(self, chosen: Tensor) -> TaskBatch:
        present = self._present[chosen]  # [T, R]
        longest = int(present.sum(dim=1).max())
        # A random key a row, absent rows last: sorting shuffles each task's own rows.
        key = torch.rand(present.shape, generator=self._generator, dtype=torch.float64)
        order = torch.where(present, key, 2.0).argsort(dim=1)[:, :longest]
        row = (chosen[:, None] * self._present.shape[1] + order).flatten()
        x, y, weight = (
            values.flatten(0, 1).index_select(0, row).unflatten(0, order.shape)
            for values in (self._x, self._y, self._present.to(self._x.dtype))
        )
        support, query = slice(None, self.shots), slice(self.shots, None)
        return TaskBatch(
            x[:, support],
            y[:, support],
            x[:, query],
            y[:, query],
            support_weight=self._support_weight(y[:, support, 0]),
            query_weight=weight[:, query],
        ).to(self.device)

    def _support_weight(self, targets: Tensor) -> Tensor | None:
        return None if self.support_norm == 2 else centre_weights(targets, self.support_norm)


def centre_weights(values: Tensor, norm: float) -> Tensor:
    """Weights [T, S] with which the mean of `values` [T, S] is its centre in this norm.

    The centre c minimises ``sum |value - c| ** norm``: the median for 1, the mean for 2, and ever
    closer to the middle of the extremes beyond. There ``sum w * (value - c) = 0`` with
    ``w = |value - c| ** (norm - 2)``, as in iteratively reweighted least squares. So a squared
    error with these weights, which every engine knows, pulls towards c. Which norm is best depends
    on the spread of targets inside a task: below 2 for outliers, 2 for a normal one, above 2 where
    values fill an interval evenly.

    Raises:
        ValueError: `norm` is below 1.
    """
    _check_norm(norm)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    # The centre lies where the sum of pulls changes sign; four rounds find it to spread / 16**4.
    part = torch.linspace(0, 1, 17, dtype=values.dtype, device=values.device)
    for _ in range(4):
        points = low + (high - low) * part  # [T, 17]
        away = values[:, :, None] - points[:, None, :]
        pull = (away.sign() * away.abs() ** (norm - 1)).sum(1)
        index = (pull > 0).sum(1, keepdim=True).clamp(1, 16)
        low, high = points.gather(1, index - 1), points.gather(1, index)
    away = values - (low + high) / 2
    # The floor keeps a row on the centre from weight 0 (or infinity, below 2).
    weight = (away.abs() / spread + 1e-4) ** (norm - 2)
    return weight / weight.sum(1, keepdim=True)


def choose_support_norm(
    table: Table, tasks: Sequence[str], scale: Standardisation, *, shots: int, seed: int = 0
) -> float:
    """Return the norm whose centre of `shots` random rows is closest to the other rows.

    Each of `SUPPORT_NORMS` is tried on the same 100 draws from every one of `tasks`, which should
    be the meta-train tasks; closest is the mean squared error, averaged over tasks.
    """
    episodes = TableEpisodes(table, tasks, scale, shots=shots, seed=seed)
    error = dict.fromkeys(SUPPORT_NORMS, 0.0)
    for _ in range(100):
        batch = episodes.sample()
        support, query = batch.support_y[..., 0], batch.query_y[..., 0]
        assert batch.query_weight is not None
        for norm in SUPPORT_NORMS:
            centre = (centre_weights(support, norm) * support).sum(1, keepdim=True)
            squared = batch.query_weight * (query - centre).square()
            error[norm] += (squared.sum(1) / batch.query_weight.sum(1)).mean().item()
    return min(SUPPORT_NORMS, key=error.__getitem__)


def _check_norm(norm: float) -> None:
    if not 1 <= norm < math.inf:
        raise ValueError(f"support_norm must be a number from 1 on, not {norm}")


def check_rows(table: Table, tasks: Sequence[str], shots: int) -> None:
    """Raise ValueError unless each of `tasks` is in the table with at least ``shots + 1`` rows."""
    counts = dict.fromkeys(tasks, 0)
    first_line: dict[str, int] = {}
    for name, line in zip(table.task_of_row, table.lines, strict=True):
        if name in counts:
            counts[name] += 1
            first_line.setdefault(name, line)
    for name, count in counts.items():
        if not count:
            raise ValueError(f"{table.path} has no rows of task {name!r}")
        if count < shots + 1:
            raise ValueError(
                f"{table.path}: task {name!r} (from line {first_line[name]}) has {count} row(s), "
                f"but {shots} shots and one query row need {shots + 1}: take fewer shots, or leave "
                "such tasks out (tasks_with_rows, --skip-small-tasks)"
            )


def tasks_with_rows(table: Table, least: int) -> tuple[str, ...]:
    """Return the tasks that have at least `least` rows, in order of their first row."""
    names, counts = np.unique(np.array(table.task_of_row, dtype=object), return_counts=True)
    enough = {name for name, count in zip(names, counts, strict=True) if count >= least}
    return tuple(name for name in table.tasks if name in enough)


def _padded(
    table: Table, tasks: Sequence[str], scale: Standardisation, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [T, R, D], y [T, R, 1] and whether a row is there [T, R]."""
    features, target = scale.features(table), scale.target(table)
    rows = [table.rows_of([name]) for name in tasks]
    longest = max(map(len, rows))
    x = torch.zeros(len(tasks), longest, features.shape[1], dtype=dtype)
    y = torch.zeros(len(tasks), longest, 1, dtype=dtype)
    present = torch.zeros(len(tasks), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        x[index, : len(row)] = torch.from_numpy(features[row]).to(dtype)
        y[index, : len(row), 0] = torch.from_numpy(target[row]).to(dtype)
        present[index, : len(row)] = True
    return x, y, present
