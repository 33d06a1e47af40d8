"""The second half of a split sum: parts added in their order, so that the bits repeat."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.aot import AotCase
from fastmeta.kernels.launch import cdiv, launchable

__all__ = ["sum_parts"]

_BLOCK = 1024


def sum_parts(parts: Tensor, total: Tensor, more_parts: Tensor, more_total: Tensor) -> None:
    """Two sums over the first dimension in one launch; all contiguous, `more` may be empty."""
    n, more = total.numel(), more_total.numel()
    blocks = cdiv(n, _BLOCK)
    grid = (blocks + cdiv(more, _BLOCK),)
    _sum_parts[grid](
        parts, total, n, more_parts, more_total, more, len(parts), blocks, BLOCK=_BLOCK
    )


@launchable
@triton.jit
def _sum_parts(parts, total, n, more_parts, more_total, more, splits, blocks, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    if block < blocks:
        _sum(parts, total, block, n, splits, BLOCK)
    else:
        _sum(more_parts, more_total, block - blocks, more, splits, BLOCK)


@triton.jit
def _sum(parts, total, block, n, splits, BLOCK: tl.constexpr):
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros([BLOCK], total.dtype.element_ty)
    for _ in range(splits):
        y += tl.load(parts + at, at < n, other=0.0)
        parts += n
    tl.store(total + at, y, at < n)


AOT = [
    AotCase(
        "sum_parts",
        _sum_parts,
        {
            "parts": "*fp32", "total": "*fp32", "n": "i32",
            "more_parts": "*fp32", "more_total": "*fp32", "more": "i32",
            "splits": "i32", "blocks": "i32",
        },
        {"BLOCK": _BLOCK},
    )
]  # fmt: skip
