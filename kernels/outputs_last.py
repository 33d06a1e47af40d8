"""Weights turned so that their outputs are contiguous.

Shared memory is why. In "ieee" a thread reads four columns: where the depth is contiguous, threads
of a warp meet in one bank. And of TF32 operands HGMMA takes only such with a contiguous depth:
others Triton copies number by number, as the weights of an input gradient. Where a product has
rows enough a pass over the weights is cheap beside that, see `configs.turns_weights`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.aot import AotCase
from fastmeta.kernels.images import shared_channels_last
from fastmeta.kernels.launch import cdiv, launchable

__all__ = ["outputs_last"]

_BLOCK = 64


def outputs_last(weight: Tensor) -> tuple[Tensor, int]:
    """[T, O, C, kh, kw] as [T, kh, kw, C, O], and its stride over the tasks, 0 where shared."""
    weight, w_t = shared_channels_last(weight)
    T, O, C, *kernel = weight.shape
    turned = weight.new_empty(T, *kernel, C, O)
    N = turned[0].numel() // O
    blocks_o, blocks_n = cdiv(O, _BLOCK), cdiv(N, _BLOCK)
    _turn[(T * blocks_o * blocks_n,)](weight, turned, O, N, w_t, blocks_o, blocks_n, BLOCK=_BLOCK)
    return turned, turned.stride(0) if w_t else 0


@launchable
@triton.jit
def _turn(w, turned, O, N, w_t, blocks_o, blocks_n, BLOCK: tl.constexpr):
    """turned[t, n, o] = w[t, o, n]"""
    block = tl.program_id(0)
    t = (block // blocks_n // blocks_o).to(tl.int64)
    o = (block // blocks_n % blocks_o).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = (block % blocks_n).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = (o < O)[:, None] & (n < N)[None, :]
    tile = tl.load(w + t * w_t + o[:, None] * N + n[None, :], known, other=0.0)
    known = (n < N)[:, None] & (o < O)[None, :]
    tl.store(turned + (t * N + n[:, None]) * O + o[None, :], tl.trans(tile), known)


AOT = [
    AotCase(
        "weights with outputs last",
        _turn,
        {
            "w": "*fp32", "turned": "*fp32", "O": "i32", "N": "i32", "w_t": "i32",
            "blocks_o": "i32", "blocks_n": "i32",
        },
        {"BLOCK": _BLOCK},
        multiples_of_16=("O", "N", "w_t"),
    )
]  # fmt: skip
