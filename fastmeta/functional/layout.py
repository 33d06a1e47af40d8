"""How many tasks look like one batch to PyTorch's kernels."""

from __future__ import annotations

from torch import Tensor

__all__ = ["in_channels", "of_tasks"]


def in_channels(x: Tensor) -> Tensor:
    """[T, S, C, ...] as [S, T*C, ...]: the tasks side by side in the channels.

    What comes out of a kernel for that and goes back through `of_tasks` lies in memory as it was,
    so that nothing is copied between one operation and the next.
    """
    return x.transpose(0, 1).flatten(1, 2)


def of_tasks(y: Tensor, tasks: int) -> Tensor:
    """[S, T*C, ...] as [T, S, C, ...]."""
    return y.unflatten(1, (tasks, -1)).transpose(0, 1)
