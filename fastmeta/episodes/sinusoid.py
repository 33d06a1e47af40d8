"""Sine waves, the regression tasks of MAML (Finn, Abbeel, Levine 2017, section 5.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmeta.counts import check_seed, whole_number
from fastmeta.tasks import TaskBatch

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
X_RANGE = (-5.0, 5.0)


class Sinusoid:
    """An endless, seeded stream of tasks ``y = amplitude * sin(x - phase)``.

    Amplitude is uniform in [0.1, 5], phase in [0, pi], x in [-5, 5]. Two sources with the same
    seed give the same tasks, whatever the batch sizes were set to elsewhere; `state_dict` and
    `load_state_dict` continue a stream where another one stood.

    Args:
        shots: support points a task, at least 1.
        queries: query points a task, at least 1.
        seed: seed of the stream.
        dtype: a floating dtype.
        device: where waves are drawn and stay. A seed gives other waves on a GPU than on a CPU.

    Attributes:
        generators: of the random numbers, for a CUDA graph that draws them.

    Raises:
        ValueError: `shots` or `queries` below 1.
        TypeError: `dtype` is not floating.
    """

    def __init__(
        self,
        *,
        shots: int = 10,
        queries: int = 10,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shots = whole_number("shots", shots)
        self.queries = whole_number("queries", queries)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, not {dtype}")
        self.dtype = dtype
        self.device = torch.device(device)
        self._generator = torch.Generator(self.device).manual_seed(check_seed(seed))
        self.generators = (self._generator,)

    def sample(self, n_tasks: int) -> TaskBatch:
        """Draw the next `n_tasks` waves: support [T, shots, 1], query [T, queries, 1]."""
        n_tasks = whole_number("n_tasks", n_tasks)
        amplitude = self._uniform(AMPLITUDE, n_tasks, 1, 1)
        phase = self._uniform(PHASE, n_tasks, 1, 1)
        x = self._uniform(X_RANGE, n_tasks, self.shots + self.queries, 1)
        y = amplitude * torch.sin(x - phase)
        support, query = slice(None, self.shots), slice(self.shots, None)
        return TaskBatch(x[:, support], y[:, support], x[:, query], y[:, query])

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands: the state of its generator (uint8)."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a state that `state_dict` gave.

        Raises:
            ValueError: it is of a stream on another kind of device.
        """
        if state["generator"].shape != self._generator.get_state().shape:
            raise ValueError(f"the stream stood on another kind of device than {self.device}")
        self._generator.set_state(state["generator"])

    def _uniform(self, bounds: tuple[float, float], *shape: int) -> Tensor:
        low, high = bounds
        unit = torch.rand(shape, generator=self._generator, dtype=self.dtype, device=self.device)
        return low + (high - low) * unit
