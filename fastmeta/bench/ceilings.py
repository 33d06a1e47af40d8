"""What this machine can do at best: products and copies, with torch's threads or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastmeta.bench.device import CPU, waits_for
from fastmeta.bench.timing import seconds_of

SIZE, GPU_SIZE = 2048, 8192
COPIED_BYTES, GPU_COPIED_BYTES = 1 << 28, 1 << 31


class Ceilings(NamedTuple):
    """``mm``: flop/s of ``torch.mm`` in float32, at 2048, on a GPU at 8192. ``copy``: bytes/s, read
    and written. ``tf32``, ``bf16``: of ``torch.mm`` on a GPU's tensor cores; 0: not measured.
    """

    mm: float
    copy: float
    tf32: float = 0.0
    bf16: float = 0.0


def measure_ceilings(device: torch.device = CPU, attempts: int = 5) -> Ceilings:
    """The best of several attempts."""
    if device.type != "cuda":
        return Ceilings(
            _product_rate(SIZE, torch.float32, device, attempts),
            _copy_rate(COPIED_BYTES, device, attempts),
        )
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    try:
        products.allow_tf32 = False
        mm = _product_rate(GPU_SIZE, torch.float32, device, attempts)
        products.allow_tf32 = True
        tf32 = _product_rate(GPU_SIZE, torch.float32, device, attempts)
    finally:
        products.allow_tf32 = before
    bf16 = _product_rate(GPU_SIZE, torch.bfloat16, device, attempts)
    return Ceilings(mm, _copy_rate(GPU_COPIED_BYTES, device, attempts), tf32, bf16)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device, attempts: int) -> float:
    """Of random numbers: zeros run faster."""
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return 2 * size**3 / _fastest(lambda: torch.mm(a, b, out=out), device, attempts)


def _copy_rate(size: int, device: torch.device, attempts: int) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device, attempts)


def _fastest(call: Callable[[], Any], device: torch.device, attempts: int) -> float:
    wait = waits_for(device)
    return min(seconds_of(call, wait) for _ in range(attempts + 1))
