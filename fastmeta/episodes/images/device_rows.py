"""Which rows of the images make up each task, drawn on the device that the images are on."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.counts import check_seed


class DeviceRowStream:
    """An endless, seeded stream of tasks as `RowStream`, of other random numbers.

    Nothing is drawn on the CPU and nothing waits for it, so a CUDA graph can draw. Classes and
    images are those of the largest random keys, in their order.

    Args:
        first: [turns, classes] int64, the row where a class begins, as it is and as turned.
        sizes: [classes] int64, how many rows it has.
        ways: classes a task, N.
        images: images a class, M.
        random_turn: whether classes are drawn first and then a turn for each.
        seed: seed of the stream.
        device: where rows are drawn.
    """

    def __init__(
        self,
        first: Tensor,
        sizes: Tensor,
        *,
        ways: int,
        images: int,
        random_turn: bool,
        seed: int,
        device: torch.device,
    ) -> None:
        self._turns, self._classes = first.shape
        self._first = first.flatten().to(device)
        sizes = sizes.repeat(self._turns).to(device)
        self._absent = torch.arange(int(sizes.max()), device=device) >= sizes[:, None]
        self._ways, self._images = ways, images
        self._random_turn = random_turn
        self.generator = torch.Generator(device).manual_seed(check_seed(seed))

    def next(self, n_tasks: int) -> Tensor:
        """The rows of the next tasks: int64 [T, N, M], in random order of classes and images."""
        ways, classes = self._ways, self._classes
        if self._random_turn:
            turn = (self._turns * self._uniform(n_tasks, ways)).long().clamp_(max=self._turns - 1)
            chosen = classes * turn + self._uniform(n_tasks, classes).topk(ways, 1).indices
        else:
            chosen = self._uniform(n_tasks, len(self._first)).topk(ways, 1).indices
        absent = self._absent[chosen]  # [T, N, largest class]
        key = self._uniform(*absent.shape).masked_fill(absent, -1.0)
        return self._first[chosen].unsqueeze(-1) + key.topk(self._images, 2).indices

    def state(self) -> Tensor:
        """The generator's state before the next task (uint8)."""
        return self.generator.get_state()

    def load_state(self, state: Tensor) -> None:
        """Continue from what `state` gave.

        Raises:
            ValueError: it is of a stream on another kind of device.
        """
        if state.shape != self.generator.get_state().shape:
            raise ValueError("the stream stood on another kind of device")
        self.generator.set_state(state)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self._first.device)
