"""What a loss divides by, or takes off: sums and means over a task's targets and weights."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastmeta.backends import cpu
from fastmeta.functional.loss_programs.program import LossProgram, Total

__all__ = ["NAMES", "UNCHANGED", "with_totals"]

NAMES = {torch.float32: "float32", torch.float64: "float64"}
# A network that hands on one number, and has a parameter that no layer of it reads.
UNCHANGED = ("activation", "affine", 1.0, 0.0, 1, 1, -1, -1)


def with_totals(
    program: LossProgram, targets: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """[T, S, W], the rows 1 of a loss: targets [T, S, ...], weights [T, S], or 1, and totals.

    dtype: that of the predictions.
    """
    tasks, samples = targets.shape[:2]
    rows = torch.zeros(tasks, samples, program.targets, dtype=dtype)
    at = program.targets - program.beside_targets
    with torch.no_grad():
        rows[:, :, :at] = targets.reshape(tasks, samples, at)
        if program.weighted:
            rows[:, :, at] = 1.0 if weights is None else weights
            at += 1
        for i, total in enumerate(program.totals, start=at):
            rows[:, :, i] = _of_tasks(total, rows).unsqueeze(1)
    return rows


def _of_tasks(total: Total, rows: Tensor) -> Tensor:
    """[T]: the loss of a network whose predictions the total does not read."""
    tasks, samples, width = rows.shape
    kernels = cpu.kernels(NAMES[rows.dtype])
    call = _call(kernels, total, tasks, samples, width)
    unread, loss = rows.new_zeros(tasks, samples, 1), rows.new_empty(tasks)
    x, y, predictions = unread.data_ptr(), rows.data_ptr(), torch.empty_like(unread)
    kernels.forward(
        call, rows, [x, x, x, y, y], False, predictions.data_ptr(), loss.data_ptr(), ()
    )
    return loss


@functools.lru_cache(maxsize=256)
def _call(kernels: Any, total: Total, tasks: int, samples: int, width: int) -> Any:
    loss = kernels.loss(1, width, total.adds, total.steps)
    return kernels.call(
        kernels.chain([UNCHANGED], loss, 1), tasks, 0, 1, [0], [None], False, (samples, samples),
        False, (False, False),
    )  # fmt: skip
