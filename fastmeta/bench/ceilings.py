"""What this machine can do at best: float32 products and copies, with torch's threads."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastmeta.bench.timing import seconds_of

SIZE = 2048
COPIED_BYTES = 1 << 28


class Ceilings(NamedTuple):
    """``mm``: flop/s of ``torch.mm`` at 2048. ``copy``: bytes/s, read and written."""

    mm: float
    copy: float


def measure_ceilings(attempts: int = 5) -> Ceilings:
    """The best of several attempts."""
    a, b, out = (torch.randn(SIZE, SIZE) for _ in range(3))
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.zeros_like(source)
    product = min(seconds_of(lambda: torch.mm(a, b, out=out)) for _ in range(attempts + 1))
    copy = min(seconds_of(lambda: target.copy_(source)) for _ in range(attempts + 1))
    return Ceilings(2 * SIZE**3 / product, 2 * COPIED_BYTES / copy)
