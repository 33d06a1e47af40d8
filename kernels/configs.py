"""Block sizes, warps and splits of each kernel: by shape and precision, apart from the kernels.

`MEASURED_ON` names the card on which the numbers were found to be the fastest; while it is None
they are chosen by count: blocks enough to fill a card, tiles whose accumulators fit into registers.
They depend on shapes alone, so that sums are taken in the same order on every card. There is no
tuning at run time.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "MEASURED_ON",
    "Tile",
    "for_convolution",
    "for_product",
    "for_weight_gradient",
    "splits",
]

MEASURED_ON: str | None = None

_BLOCKS = 264  # two for each multiprocessor of an H100 or H200


class Tile(NamedTuple):
    """A program computes [m, n] of a product, `k` terms at a time."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


def for_product(rows: int, columns: int, depth: int, batch: int, precision: str) -> Tile:
    """For `batch` products [rows, depth] [depth, columns]."""
    n = _power_of_two(columns, 16, 64)
    m = _power_of_two(rows, 16, 128)
    while m > 32 and batch * -(-rows // m) * -(-columns // n) < _BLOCKS:
        m //= 2
    deep = 16 if precision in ("ieee", "tf32x3") else 32
    k = _power_of_two(depth, 16, deep)
    if precision == "ieee":  # a thread holds at most 32 sums
        return Tile(m, n, k, min(8, max(2, m * n // 1024)), 3)
    return Tile(m, n, k, 4 if m * n >= 32 * 64 else 2, 3)  # Hopper's HGMMA needs 4 warps, 64 rows


def for_convolution(
    pixels: int, outputs: int, channels: int, taps: int, batch: int, precision: str
) -> Tile:
    """For `batch` convolutions; where it can be, a block of the depth is within one tap."""
    tile = for_product(pixels, outputs, taps * channels, batch, precision)
    k = tile.k
    while k > 16 and channels % k:
        k //= 2
    return tile._replace(k=k if channels % k == 0 else tile.k)


def for_weight_gradient(
    outputs: int, channels: int, taps: int, pixels: int, batch: int, precision: str
) -> Tile:
    """For `batch` products over the pixels; where it can be, columns are within one tap."""
    tile = for_product(outputs, taps * channels, pixels, batch, precision)
    n = tile.n
    while n > 16 and channels % n:
        n //= 2
    return tile._replace(n=n if channels % n == 0 else tile.n)


def splits(tile: Tile, rows: int, columns: int, depth: int, batch: int) -> int:
    """Into how many parts a long sum is split, for blocks enough to fill a card."""
    blocks = batch * -(-rows // tile.m) * -(-columns // tile.n)
    steps = -(-depth // tile.k)
    return max(1, min(_BLOCKS // blocks, steps // 8))


def _power_of_two(size: int, least: int, most: int) -> int:
    """The smallest one that holds `size`, within bounds."""
    return min(most, max(least, 1 << (size - 1).bit_length()))
