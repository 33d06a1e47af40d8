"""Block sizes of the norm kernels. Chosen by count, not measured: see `configs`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["NormBlock", "norm_block"]

_BLOCKS = 132 * 4  # of four warps
_MOST_PARTS = 64  # that one program merges
_BYTES = 4096  # of a tensor in a tile: with more, the second backward spills


class NormBlock(NamedTuple):
    """Pixels and channels of a tile, and the pixels whose sums one program takes."""

    rows: int
    C: int
    chunk: int
    num_warps: int = 4

    def windows(self, pool: int) -> int:
        """Windows of a tile, with `pool` x `pool` pixels each."""
        return max(1, self.rows // (pool * pool))


def norm_block(x: Tensor) -> NormBlock:
    """For x [T, S, C, H, W]: wide in channels where those lie side by side, else in pixels."""
    tasks, samples, channels, height, width = x.shape
    pixels = samples * height * width
    C = min(32, power_of_2(channels)) if x.stride(2) == 1 else 1
    rows = min(_BYTES // x.element_size() // C, power_of_2(pixels))
    wanted = -(-_BLOCKS // (tasks * -(-channels // C)))
    parts = max(1, min(wanted, _MOST_PARTS, pixels // (2 * rows)))
    chunk = -(-pixels // parts)
    return NormBlock(rows, C, -(-chunk // rows) * rows)


def power_of_2(n: int) -> int:
    """The lowest that is at least n."""
    return 1 << max(0, n - 1).bit_length()
