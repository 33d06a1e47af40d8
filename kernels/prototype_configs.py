"""Block sizes of the prototype kernels. Chosen by count, not measured: see `configs`.

A block of distances keeps Q x N x D sums in registers; 64 of them a thread leave room for the
operands without spills (compiled ahead of time for each target, see the tests).
"""

from __future__ import annotations

from typing import NamedTuple

from fastmeta.kernels.configs import power_of_2

__all__ = [
    "MOST_CLASSES", "BoundBlock", "DistanceBlock", "GradientBlock", "MeanBlock", "NearestBlock",
    "SumBlock", "bound_block", "distance_block", "exact_block", "gradient_block", "mean_block",
    "nearest_block", "pull_block", "sum_block",
]  # fmt: skip


class DistanceBlock(NamedTuple):
    """Rows, prototypes and features of a step, and the warps that share them."""

    Q: int
    N: int
    D: int
    num_warps: int = 4


class SumBlock(NamedTuple):
    """Samples and features of a step of a sum over samples."""

    S: int
    D: int
    num_warps: int = 4


class MeanBlock(NamedTuple):
    """Samples whose labels are looked at in a step, rows of a class read at once, and features."""

    S: int
    rows: int
    D: int


class GradientBlock(NamedTuple):
    """Queries of a step, prototypes in two blocks, features, and the queries of a program."""

    Q: int
    N: int
    more: int
    D: int
    chunk: int


class NearestBlock(NamedTuple):
    """Queries, prototypes and features of a step, and the prototypes of a program."""

    Q: int
    N: int
    D: int
    part: int


class BoundBlock(NamedTuple):
    """Queries, prototypes and features of a product, prototypes of a program, bounds it keeps."""

    Q: int
    N: int
    D: int
    part: int
    kept: int
    num_warps: int


# A wider gradient keeps prototypes and their gradients of more than 32 classes in registers.
MOST_CLASSES = 32
_BLOCKS = 132 * 4  # of four warps, before blocks get larger than they must be
_WORTH_BOUNDS = 2**31  # differences of the exact form: 0.5 to 0.7 ms, scaled from 6.6e9 on an H100
_PROGRAMS = 132 * 12  # of one warp: 12 a multiprocessor hide the latency of their loads


def distance_block(rows: int, prototypes: int, width: int) -> DistanceBlock:
    """For distances of `rows`, those of all tasks together, to `prototypes` of a task.

    Columns of D lie in 8 to 32 threads. Fewer mean fewer steps of the last sum, more mean longer
    rows a load: 8 features of float32 are the 32 bytes that memory moves at least.
    """
    D = 8 if width <= 128 else 32
    N = min(max(power_of_2(prototypes), 4), 32)
    most = min(64, 8192 // (N * D))
    return DistanceBlock(Q=min(most, max(4, power_of_2(rows // _BLOCKS))), N=N, D=D)


def mean_block(samples: int, width: int) -> MeanBlock:
    """For the means of classes: a program of one warp, so that sums stay within threads."""
    D = min(max(power_of_2(width), 32), 128)
    return MeanBlock(S=min(max(power_of_2(samples), 32), 128), rows=8, D=D)


def sum_block(samples: int, width: int) -> SumBlock:
    """For the gradients of the means of classes."""
    D = min(max(power_of_2(width), 16), 128)
    return SumBlock(S=min(max(power_of_2(samples), 8), 32), D=D)


def pull_block(prototypes: int, width: int) -> DistanceBlock:
    """For sums over prototypes: a program of one warp, so that they stay within threads."""
    D = min(128, max(32, power_of_2(width)))
    N = min(4, max(2, power_of_2(prototypes)))
    return DistanceBlock(Q=max(1, 1024 // (N * D)), N=N, D=D, num_warps=1)


def gradient_block(tasks: int, queries: int, prototypes: int, width: int) -> GradientBlock:
    """For the gradient of the loss: a program of one warp, so that sums stay within threads."""
    N = max(2, 1 << (prototypes.bit_length() - 1))
    more = power_of_2(prototypes - N) if prototypes > N else 0  # 20 as 16 and 4, not as 32
    D = min(128, max(32, 512 // N), max(32, power_of_2(width)))
    Q = max(1, min(4, 1024 // (N * D)))
    programs = tasks * -(-width // D)
    chunks = min(-(-_PROGRAMS // programs), -(-queries // 8))
    chunk = -(-queries // max(1, chunks))
    return GradientBlock(Q, N, more, D, -(-chunk // Q) * Q)


def nearest_block(rows: int, bank: int, width: int) -> NearestBlock:
    """For the nearest of a bank: parts of it to programs, enough of them to fill the card."""
    block = exact_block(rows, width, 0)
    parts = min(-(-bank // (8 * block.N)), max(1, _BLOCKS // max(1, -(-rows // block.Q))), 1024)
    part = -(-bank // max(1, parts))
    return block._replace(part=-(-part // block.N) * block.N)


def exact_block(rows: int, width: int, part: int) -> NearestBlock:
    """For distances of parts that are given, multiples of 32."""
    D = 8 if width <= 128 else 32
    return NearestBlock(min(32, max(4, power_of_2(rows))), 32 if D == 8 else 8, D, part)


def bound_block(tasks: int, queries: int, bank: int, width: int, k: int) -> BoundBlock | None:
    """For the nearest of a bank by bounds on tensor cores; None where they do not pay by count.

    They pay where the exact distances would take long beside seven launches, and a list of twice
    the nearest that are wanted fits into registers.
    """
    if queries < 64 or k > 16 or tasks * queries * bank * width < _WORTH_BOUNDS:
        return None
    Q, N = (64, 64) if queries < 128 else (128, 64)
    blocks = tasks * -(-queries // Q)
    part = -(-bank // min(-(-bank // (32 * N)), max(1, _BLOCKS // (2 * blocks)), 1024))
    return BoundBlock(Q, N, 32, -(-part // N) * N, 2 * max(2, power_of_2(k)), Q // 16)
