"""Block sizes, warps and splits of each kernel: by shape and precision, apart from the kernels.

`MEASURED_ON` names the card on which those of a layer of Conv4-64 were the fastest of several (28
to 7 pixels a side, 32 tasks; docs/notes/triton-kernels.md). What says "by count" was not measured:
blocks enough to fill a card, tiles whose sums fit into registers, instructions counted in what the
compiler made. All depend on shapes alone, so that sums are taken in the same order on every card.
There is no tuning at run time.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "MEASURED_ON",
    "Tile",
    "for_convolution",
    "for_product",
    "for_sum_over_rows",
    "for_weight_gradient",
    "power_of_2",
    "splits",
    "turns_weights",
]

MEASURED_ON: str | None = "NVIDIA H100 80GB HBM3"

_MULTIPROCESSORS = 132
_BLOCKS = 2 * _MULTIPROCESSORS


class Tile(NamedTuple):
    """A program computes [m, n] of a product, `k` terms at a time."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


# Of a convolution and its input gradient, in TFLOP/s at 14 x 14 pixels and 25 samples.
_PRODUCT = {
    "ieee": Tile(64, 64, 32, 4, 3),  # 38; half the depth 36, 128 rows 33, 32 rows 31
    "tf32x3": Tile(128, 64, 32, 8, 3),  # 50; 64 rows 49
    "tf32": Tile(128, 64, 32, 4, 3),  # 135; 64 rows 127, twice the depth 110
    "bf16": Tile(64, 64, 32, 4, 4),  # 118, at 7 x 7 pixels 82; three stages 115 and 66
}

# Of sums over pixels or samples, whose operands are both contiguous across their depth.
_SUM_OVER_ROWS = {
    "ieee": Tile(64, 64, 16, 4, 3),  # 24, as every other
    "tf32x3": Tile(64, 64, 32, 4, 3),  # 24; 128 rows 20
    # By count: HGMMA takes TF32 with a contiguous depth alone, and reached 21 behind a copy of
    # number after number. HMMA, for which two warps are the sign, takes it as it is.
    "tf32": Tile(64, 64, 32, 2, 3),
    "bf16": Tile(64, 64, 32, 4, 3),  # 84; twice the depth 73
}


def for_product(
    rows: int, columns: int, depth: int, batch: int, precision: str, *, along_columns: bool
) -> Tile:
    """For `batch` products [rows, depth] [depth, columns].

    along_columns: whether the second one is contiguous along its columns, not along its depth.
    """
    best = _PRODUCT[precision]
    n = _power_within(columns, 16, best.n)
    m = _power_within(rows, 16, best.m)

    def blocks() -> int:
        return batch * -(-rows // m) * -(-columns // n)

    # HGMMA takes no 32 rows: bf16 reached 25 TFLOP/s with them at 7 x 7 pixels and 5 samples, 34
    # with 64.
    while m > (32 if precision == "ieee" else 64) and blocks() < _BLOCKS:
        m //= 2
    # By count: a multiplier waits where no warp is. Columns that are not contiguous are read from
    # one bank of shared memory, and fewer rows would read them more often.
    if precision == "ieee" and along_columns and m > 16 and blocks() < _MULTIPROCESSORS:
        m //= 2
    k = 16 if precision == "ieee" and m < best.m else best.k
    return best._replace(
        m=m, n=n, k=_power_within(depth, 16, k), num_warps=_warps(best, m, n, precision)
    )


def for_convolution(
    pixels: int,
    outputs: int,
    channels: int,
    taps: int,
    batch: int,
    precision: str,
    *,
    along_columns: bool,
) -> Tile:
    """For `batch` convolutions; where it can be, a block of the depth is within one tap."""
    depth = taps * channels
    tile = for_product(pixels, outputs, depth, batch, precision, along_columns=along_columns)
    k = tile.k
    while k > 16 and channels % k:
        k //= 2
    return tile._replace(k=k if channels % k == 0 else tile.k)


def turns_weights(
    rows: int, outputs: int, depth: int, precision: str, *, along_outputs: bool = False
) -> bool:
    """Whether weights are worth a pass that makes their outputs contiguous.

    along_outputs: they are the depth of the product, as in the input gradient, or else its columns.
    """
    if along_outputs:  # 4900 rows: TF32 at 64 TFLOP/s as they are, 135 where they are contiguous
        return precision in ("tf32", "tf32x3") and rows >= 512
    if precision != "ieee" or outputs < 32:
        return False
    return rows >= 32 and rows * depth >= 2**13  # 13 and 36 TFLOP/s; by count, the pass's 4 us


def for_sum_over_rows(rows: int, columns: int, depth: int, precision: str) -> Tile:
    """For products [depth, rows]^T [depth, columns]; `splits` makes them enough for a card."""
    best = _SUM_OVER_ROWS[precision]
    if precision == "tf32" and depth < 512:  # by count: unaligned operands spilled
        best = best._replace(m=32, num_warps=4)
    m, n = _power_within(rows, 16, best.m), _power_within(columns, 16, best.n)
    return best._replace(
        m=m, n=n, k=_power_within(depth, 16, best.k), num_warps=_warps(best, m, n, precision)
    )


def for_weight_gradient(
    outputs: int, channels: int, taps: int, pixels: int, precision: str
) -> Tile:
    """For sums over the pixels; where it can be, columns are within one tap."""
    tile = for_sum_over_rows(outputs, taps * channels, pixels, precision)
    n = tile.n
    while n > 16 and channels % n:
        n //= 2
    n = n if channels % n == 0 else tile.n
    return tile._replace(n=n, num_warps=_warps(tile, tile.m, n, precision))


def splits(tile: Tile, rows: int, columns: int, depth: int, batch: int) -> int:
    """Into how many parts a long sum is split: blocks enough for a card, and to load it evenly."""
    blocks = batch * -(-rows // tile.m) * -(-columns // tile.n)
    steps = -(-depth // tile.k)
    to_fill = min(_BLOCKS // blocks, steps // 8)
    # 288 blocks are three for some multiprocessors and two for the others: three parts gave 33
    # TFLOP/s in float32 at 14 x 14 pixels and 25 samples, one 26; at 7 x 7 two gave 21, one 25.
    to_even_out = min(4 * _BLOCKS // blocks, depth // 512 if depth >= 2048 else 1)
    return max(1, to_fill, to_even_out)


def _warps(best: Tile, m: int, n: int, precision: str) -> int:
    """Of a tile that may be smaller than the best one."""
    if precision == "ieee":  # a thread holds at most 32 sums
        return min(8, max(2, m * n // 1024))
    if m < 64 and m * n < 32 * 64:  # HGMMA needs 64 rows and four warps
        return 2
    return min(best.num_warps, 4) if m * n < best.m * best.n else best.num_warps


def power_of_2(n: int) -> int:
    """The lowest that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _power_within(n: int, least: int, most: int) -> int:
    return min(most, max(least, power_of_2(n)))
