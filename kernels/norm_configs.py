"""Block sizes of the norm kernels. Chosen by count, not measured: see `configs`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastmeta.kernels.configs import power_of_2

__all__ = ["NormBlock", "norm_block"]

_BLOCKS = 132 * 15  # of four warps, each with its own constants to read: 31 parts for 32 tasks
_MOST_PARTS = 64  # that every program reads
_BYTES = 8192  # of a tensor in a tile: a window's pixels, four channels each, are a thread's


class NormBlock(NamedTuple):
    """Pixels and channels of a tile, and into how many parts the pixels are split."""

    rows: int
    C: int
    parts: int
    num_warps: int = 4

    def windows(self, pool: int) -> int:
        """Windows of a tile, with `pool` x `pool` pixels each; half a tile without a pool."""
        return max(1, self.rows // max(2, pool * pool))

    def chunk(self, count: int, rows: int) -> int:
        """Of `count` windows or pixels, those of one program, in whole tiles of `rows`."""
        return -(-count // (self.parts * rows)) * rows


def norm_block(x: Tensor) -> NormBlock:
    """For x [T, S, C, H, W]: wide in channels where those lie side by side, else in pixels."""
    tasks, samples, channels, height, width = x.shape
    C = min(32, power_of_2(channels)) if x.stride(2) == 1 else 1
    rows = min(_BYTES // x.element_size() // C, power_of_2(samples * height * width))
    return NormBlock(rows, C, min(_MOST_PARTS, -(-_BLOCKS // (tasks * -(-channels // C)))))
