"""What training asks of a source of tasks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fastmeta.tasks import TaskBatch


class Source(Protocol):
    """Where tasks come from: a seeded stream that can be continued."""

    def sample(self, n_tasks: int) -> TaskBatch:
        """Draw the next tasks."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the stream from there."""
        ...
