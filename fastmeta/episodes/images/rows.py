"""Which rows of the images make up each task."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmeta.counts import check_seed
from fastmeta.episodes.images.draws import distinct

# Drawing for so many tasks costs little more than for one.
TASKS_AHEAD = 256


class RowStream:
    """An endless, seeded stream of tasks, each the row numbers of its images.

    A task takes a fixed count of random numbers, so the tasks do not depend on how many are asked
    for at a time, nor on how many are drawn ahead.

    Args:
        first: [turns, classes] int64, the row where a class begins, as it is and as turned.
        sizes: [classes] int64, how many rows it has.
        ways: classes a task, N.
        images: images a class, M.
        random_turn: whether classes are drawn first and then a turn for each; otherwise a turned
            class is a class like any other.
        seed: seed of the stream.
    """

    def __init__(
        self,
        first: np.ndarray,
        sizes: np.ndarray,
        *,
        ways: int,
        images: int,
        random_turn: bool,
        seed: int,
    ) -> None:
        self._turns, self._classes = first.shape
        self._first, self._sizes = first.ravel(), np.tile(sizes, len(first))
        self._ways, self._images = ways, images
        self._random_turn = random_turn
        self._generator = torch.Generator().manual_seed(check_seed(seed))
        self._ahead_from = self._generator.get_state()
        self._ahead = np.empty((0, ways, images), np.int64)
        self._used = 0  # of the tasks drawn ahead

    def next(self, n_tasks: int) -> np.ndarray:
        """The rows of the next tasks: int64 [T, N, M], in random order of classes and images."""
        if self._used + n_tasks > len(self._ahead):
            self.load_state(self.state())
            self._ahead = self._draw(n_tasks * max(1, TASKS_AHEAD // n_tasks))
        self._used += n_tasks
        return self._ahead[self._used - n_tasks : self._used]

    def state(self) -> Tensor:
        """The generator's state before the next task (uint8)."""
        if not self._used:
            return self._ahead_from
        generator = torch.Generator()
        generator.set_state(self._ahead_from)
        self._random_numbers(self._used, generator)
        return generator.get_state()

    def load_state(self, state: Tensor) -> None:
        """Continue from what `state` gave."""
        self._generator.set_state(state)
        self._ahead_from = state
        self._ahead = self._ahead[:0]
        self._used = 0

    def _draw(self, n_tasks: int) -> np.ndarray:
        ways, images = self._ways, self._images
        unit = self._random_numbers(n_tasks, self._generator)
        of_class, of_turn, of_image = unit[:, :ways], unit[:, ways : 2 * ways], unit[:, 2 * ways :]
        if self._random_turn:
            turn = (self._turns * of_turn).astype(np.int64)
            chosen = self._classes * turn + distinct(of_class, np.full(n_tasks, self._classes)).T
        else:
            chosen = distinct(of_class, np.full(n_tasks, len(self._first))).T
        chosen = chosen.ravel()
        image = distinct(of_image.reshape(-1, images), self._sizes[chosen])
        rows = self._first[chosen, None] + image.T
        return rows.reshape(n_tasks, ways, images)

    def _random_numbers(self, n_tasks: int, generator: torch.Generator) -> np.ndarray:
        """Uniform in [0, 1), a row for each task: N for classes, N for turns, N * M for images."""
        numbers = self._ways * (2 + self._images)
        return torch.rand(n_tasks, numbers, generator=generator, dtype=torch.float64).numpy()
