"""Forms of the norm kernels that are compiled ahead of time."""

from __future__ import annotations

import torch

from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.norm_forward import norm_forward
from fastmeta.kernels.norm_gradient import norm_gradient, norm_second

__all__ = ["aot"]


def aot() -> list[AotCase]:
    """The block of Conv4-64 on Omniglot, channels last, and a norm alone of rows of pixels."""
    rows = torch.empty(1, 1, 800, 1, 6400, device="meta")
    cases = cases_of("norm of rows", lambda: norm_forward(rows, None, None, 1e-5, 1.0, 1))
    cases += _block("norm pool", 28, 2, torch.float32)
    cases += _block("norm pool float64", 28, 2, torch.float64, targets=(90,))
    cases += _block("norm pool of one task", 28, 2, torch.float32, targets=(90,), tasks=1)
    return cases


def _block(
    name: str, size: int, pool: int, dtype: torch.dtype,
    targets: tuple[int, ...] = (80, 90, 100), tasks: int = 32,
) -> list[AotCase]:
    def pixels(size: int) -> torch.Tensor:
        x = torch.empty(tasks, 5, size, size, 64, device="meta", dtype=dtype)
        return x.movedim(4, 2)

    x, grad = pixels(size), pixels(size // pool)
    of_channel = torch.empty(tasks, 64, device="meta", dtype=dtype)
    given = (x, of_channel, of_channel, of_channel, of_channel, 0.0, pool)

    def launch() -> None:
        norm_forward(x, of_channel, of_channel, 1e-5, 0.0, pool)
        norm_gradient(grad, *given)
        norm_second(x, of_channel, of_channel, grad, *given)

    return cases_of(name, launch, targets=targets)
