"""Few-shot episodes over classes of images."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.counts import whole_number
from fastmeta.episodes.images.classes import ImageClasses
from fastmeta.episodes.images.device_rows import DeviceRowStream
from fastmeta.episodes.images.rows import RowStream
from fastmeta.episodes.images.scale import PixelScale
from fastmeta.tasks import TaskBatch

QUARTER_TURNS = 4
ROTATIONS = (None, "classes", "random")


class ImageEpisodes:
    """An endless, seeded stream of N-way K-shot tasks.

    A task has `ways` different classes in random order, labelled 0, 1, ..., and of each class
    `shots + queries` different images, in random order. Images stay where `classes` holds them,
    the CPU or a GPU; only row numbers are drawn, on the CPU. So one seed gives the same tasks on
    every device, and whatever the batch sizes are. See `drawn_on_device` for other tasks that are
    drawn where the images are.

    Rotations, after Vinyals et al. 2016 ("Matching networks", section 4.1.1), keep copies of the
    images turned by 90, 180 and 270 degrees, which take four times the memory:

    - "classes": a class turned is another class; there are four times as many.
    - "random": each class of each task is turned by a random one of the four.

    Args:
        classes: the images.
        ways: classes a task, N.
        shots: support images a class, K.
        queries: query images a class.
        rotations: None, "classes" or "random".
        scale: from bytes to the numbers that a network sees; to [0, 1] in float32 by default.
        seed: seed of the stream.

    Attributes:
        n_classes: how many classes tasks are drawn from, turned ones included.
        generators: those of the device that draw, for a CUDA graph; none where the CPU draws.

    Raises:
        ValueError: fewer classes than `ways`, a class with fewer images than
            ``shots + queries``, a count below 1, rotations of images that are not square, or
            a `scale` for another number of channels.
    """

    def __init__(
        self,
        classes: ImageClasses,
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        rotations: str | None = None,
        scale: PixelScale | None = None,
        seed: int = 0,
    ) -> None:
        ways, shots = whole_number("ways", ways), whole_number("shots", shots)
        queries = whole_number("queries", queries)
        if rotations not in ROTATIONS:
            raise ValueError(f'rotations must be None, "classes" or "random", not {rotations!r}')
        self.n_classes = len(classes) * (QUARTER_TURNS if rotations == "classes" else 1)
        if self.n_classes < ways:
            raise ValueError(f"{ways} ways need {ways} classes, and there are {self.n_classes}")
        _check_sizes(classes, shots, queries)
        self.ways, self.shots, self.queries = ways, shots, queries
        self.rotations = rotations
        self.scale = scale or PixelScale()
        self.scale.check_channels(classes.images.shape[1])

        self._images = _turned(classes.images) if rotations else classes.images.contiguous()
        turn_begins = np.arange(0, len(self._images), len(classes.images))
        self._first = turn_begins[:, None] + classes.offsets[:-1].numpy()
        self._sizes = classes.sizes.numpy()
        self._draw: dict[str, Any] = dict(
            ways=ways, images=shots + queries, random_turn=rotations == "random", seed=seed
        )
        self._rows: RowStream | DeviceRowStream = RowStream(self._first, self._sizes, **self._draw)
        self.generators: tuple[torch.Generator, ...] = ()
        self._labels = self._labels_of(0)

    def sample(self, n_tasks: int) -> TaskBatch:
        """Draw the next `n_tasks` tasks, class after class within a task.

        Returns support images [T, N * K, C, H, W] and labels [T, N * K] int64, and queries alike.

        Raises:
            ValueError: `n_tasks` is below 1.
        """
        n_tasks = whole_number("n_tasks", n_tasks)
        rows = torch.as_tensor(self._rows.next(n_tasks))  # [T, N, K + Q]
        support, query = rows[..., : self.shots], rows[..., self.shots :]
        # Support first, so that one gather gives two contiguous tensors.
        order = torch.cat([support.flatten(), query.flatten()])
        x = self.scale.take(self._images, order.to(self._images.device))
        support_x, query_x = x.split_with_sizes([support.numel(), query.numel()])
        if len(self._labels[0]) != n_tasks:
            self._labels = self._labels_of(n_tasks)
        support_y, query_y = self._labels
        shape = (n_tasks, -1, *x.shape[1:])
        return TaskBatch(
            support_x.view(shape), support_y.clone(), query_x.view(shape), query_y.clone()
        ).with_known_ways(self.ways)

    def drawn_on_device(self) -> ImageEpisodes:
        """The same from its beginning, drawn where the images are: other tasks for one seed.

        A CUDA graph can then draw too (`training.GraphedStep`).
        """
        other = copy(self)
        other._rows = DeviceRowStream(
            torch.from_numpy(self._first),
            torch.from_numpy(self._sizes),
            **self._draw,
            device=self._images.device,
        )
        other.generators = (other._rows.generator,)
        return other

    def _labels_of(self, n_tasks: int) -> tuple[Tensor, Tensor]:
        """Of support [T, N * K] and query [T, N * Q], the same for every task."""
        way = torch.arange(self.ways, device=self._images.device)
        support, query = way.repeat_interleave(self.shots), way.repeat_interleave(self.queries)
        return support.repeat(n_tasks, 1), query.repeat(n_tasks, 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands: the state of its generator (uint8)."""
        return {"generator": self._rows.state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that `state_dict` gave."""
        self._rows.load_state(state["generator"])


def _turned(images: Tensor) -> Tensor:
    """The images as they are, then all of them turned by 90, by 180 and by 270 degrees."""
    if images.shape[-2] != images.shape[-1]:
        raise ValueError(f"rotations need square images, not {list(images.shape[-2:])}")
    return torch.cat([torch.rot90(images, k, (-2, -1)) for k in range(QUARTER_TURNS)])


def _check_sizes(classes: ImageClasses, shots: int, queries: int) -> None:
    needed = shots + queries
    small = (classes.sizes < needed).nonzero()[:, 0].tolist()
    if small:
        others = f" (and {len(small) - 1} classes more)" if len(small) > 1 else ""
        raise ValueError(
            f"class {classes.names[small[0]]!r} has {int(classes.sizes[small[0]])} images, but "
            f"{shots} shots and {queries} queries need {needed}{others}"
        )
