"""Few-shot episodes over classes of vectors: features that were measured or computed before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmeta.counts import whole_number
from fastmeta.episodes.images.npz import read_arrays
from fastmeta.episodes.images.rows import RowStream
from fastmeta.tasks import TaskBatch


@dataclass(frozen=True, eq=False)
class VectorClasses:
    """Vectors sorted by class; classes may differ in size.

    Attributes:
        features: float32 [n, D], all vectors of the first class, then those of the second, ...
        sizes: int64 [classes], how many each class has, at least 1.
        names: the classes' names, each once.
    """

    features: Tensor
    sizes: Tensor
    names: tuple[str, ...]

    @classmethod
    def from_labels(cls, features: np.ndarray, labels: np.ndarray) -> VectorClasses:
        """From vectors [n, D] in any order and a label for each, a number or a text.

        Raises:
            ValueError: shapes that are not as above, or a value that is not finite.
        """
        if features.ndim != 2 or features.dtype.kind not in "fiu" or not features.size:
            raise ValueError(
                f"features must be numbers [n, D], not {features.dtype} {list(features.shape)}"
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(f"{len(features)} vectors need a label each, not {list(labels.shape)}")
        if labels.dtype.kind not in "iuU":
            raise ValueError(f"labels must be integers or texts, not {labels.dtype}")
        wrong = np.flatnonzero(~np.isfinite(features).all(1))
        if len(wrong):
            raise ValueError(f"row {wrong[0]} of the features has a value that is not finite")
        present, sizes = np.unique(labels, return_counts=True)
        order = labels.argsort(kind="stable")
        x = torch.from_numpy(features[order].astype(np.float32))
        return cls(x, torch.from_numpy(sizes), tuple(map(str, present.tolist())))

    def __len__(self) -> int:
        """How many classes there are."""
        return len(self.names)

    def select(self, names: Iterable[str]) -> VectorClasses:
        """These classes, in this order, as a copy.

        Raises:
            ValueError: a name that no class has.
        """
        chosen = tuple(names)
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            raise ValueError(f"there is no class {unknown[0]!r} among {len(self)} classes")
        at = [self.names.index(name) for name in chosen]
        parts = self.features.split(self.sizes.tolist())
        features = torch.cat([self.features[:0], *(parts[i] for i in at)])
        return VectorClasses(features, self.sizes[at], chosen)

    def map(self, change: Callable[[Tensor], Tensor]) -> VectorClasses:
        """With other features of the same vectors."""
        return replace(self, features=change(self.features))

    def fingerprint(self) -> str:
        """SHA-256 of the names and the vectors."""
        told = (self.names, self.sizes.tolist(), tuple(self.features.shape))
        digest = hashlib.sha256(repr(told).encode())
        digest.update(self.features.contiguous().numpy().data)
        return digest.hexdigest()


def read_vectors(
    path: str | Path, *, features: str, labels: str = "labels", drop_rows: Collection[int] = ()
) -> VectorClasses:
    """Read labelled vectors from an ``.npz`` file.

    Args:
        path: the file.
        features: name of the array [n, D].
        labels: name of the array [n], integers or texts.
        drop_rows: rows that are left out, as in the file.

    Raises:
        ValueError: the file is damaged, lacks an array, or has not such arrays.
        OSError: it cannot be opened.
    """
    arrays = read_arrays(path, required=[features, labels])
    x, y = arrays[features], arrays[labels]
    try:
        beyond = [row for row in drop_rows if not 0 <= row < len(x)]
        if beyond:
            raise ValueError(f"there is no row {beyond[0]} among {len(x)}")
        if len(y) == len(x):
            x, y = (np.delete(array, sorted(drop_rows), axis=0) for array in (x, y))
        return VectorClasses.from_labels(x, y)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class VectorEpisodes:
    """An endless, seeded stream of N-way K-shot tasks over vectors, as `ImageEpisodes` of images.

    The draws depend on the seed and the sizes of the classes, not on the vectors: the same seed
    gives the same tasks of raw and of transformed features.

    Args:
        classes: the vectors.
        ways: classes a task, N.
        shots: support vectors a class, K.
        queries: query vectors a class.
        seed: seed of the stream.
        device: where tasks go. They are drawn on the CPU, alike for every device.

    Raises:
        ValueError: fewer classes than `ways`, a class with fewer vectors than
            ``shots + queries``, or a count below 1.
    """

    def __init__(
        self,
        classes: VectorClasses,
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int = 5,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        ways, shots = whole_number("ways", ways), whole_number("shots", shots)
        queries = whole_number("queries", queries)
        if len(classes) < ways:
            raise ValueError(f"{ways} ways need {ways} classes, and there are {len(classes)}")
        _check_sizes(classes, shots, queries)
        self.ways, self.shots, self.queries = ways, shots, queries
        self.n_classes = len(classes)
        self._features = classes.features
        self.device = torch.device(device)
        self._rows = RowStream(
            (classes.sizes.cumsum(0) - classes.sizes).numpy()[None],
            classes.sizes.numpy(),
            ways=ways,
            images=shots + queries,
            random_turn=False,
            seed=seed,
        )

    def sample(self, n_tasks: int) -> TaskBatch:
        """Draw the next `n_tasks` tasks, class after class within a task.

        Returns support vectors [T, N * K, D] and labels [T, N * K] int64, and queries alike.

        Raises:
            ValueError: `n_tasks` is below 1.
        """
        n_tasks = whole_number("n_tasks", n_tasks)
        x = self._features[torch.from_numpy(self._rows.next(n_tasks))]  # [T, N, K + Q, D]
        support, query = x.split([self.shots, self.queries], 2)
        return TaskBatch(
            support.flatten(1, 2), self._labels(n_tasks, self.shots),
            query.flatten(1, 2), self._labels(n_tasks, self.queries),
        ).to(self.device).with_known_ways(self.ways)  # fmt: skip

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands: the state of its generator (uint8)."""
        return {"generator": self._rows.state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that `state_dict` gave."""
        self._rows.load_state(state["generator"])

    def _labels(self, n_tasks: int, each: int) -> Tensor:
        return torch.arange(self.ways).repeat_interleave(each).repeat(n_tasks, 1)


def _check_sizes(classes: VectorClasses, shots: int, queries: int) -> None:
    needed = shots + queries
    small = (classes.sizes < needed).nonzero()[:, 0].tolist()
    if small:
        raise ValueError(
            f"class {classes.names[small[0]]!r} has {int(classes.sizes[small[0]])} vectors, but "
            f"{shots} shots and {queries} queries need {needed}"
        )
