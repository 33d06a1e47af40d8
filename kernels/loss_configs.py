"""Block sizes of the losses' kernels. Chosen by count, not measured: see `configs`."""

from __future__ import annotations

from typing import NamedTuple

from fastmeta.kernels.configs import power_of_2

__all__ = ["MOST_OUTPUTS", "LossBlock", "loss_block"]

MOST_OUTPUTS = 2048  # of a sample, whose row is in the registers of a program


class LossBlock(NamedTuple):
    """Samples and outputs of a step."""

    S: int
    N: int
    num_warps: int


def loss_block(samples: int, outputs: int) -> LossBlock:
    """For a task's losses: all samples at once while a thread holds at most 16 numbers."""
    N = power_of_2(outputs)
    S = max(1, min(power_of_2(samples), MOST_OUTPUTS // N))
    return LossBlock(S, N, min(4, max(1, S * N // 128)))
