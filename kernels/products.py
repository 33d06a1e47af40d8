"""The product of two tiles, in the precisions that a user can choose.

"ieee": float32 or float64 by multiply-add. "tf32x3": three TF32 products, near float32 accuracy on
tensor cores. "tf32" and "bf16": inputs rounded to it, sums in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["multiply_add"]


@triton.jit
def multiply_add(a, b, total, PRECISION: tl.constexpr):
    """total + a b, for a [M, K] and b [K, N]"""
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
