"""The mean loss of each task over its samples, weighted or not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.launch import launchable
from fastmeta.kernels.loss_configs import loss_block
from fastmeta.kernels.loss_tile import LOSSES, block_of, losses

__all__ = ["aot_tasks", "sums_in", "targets_strides", "task_loss"]


@launchable
@triton.jit
def task_loss_kernel(
    x_ptr, y_ptr, weight_ptr, loss_ptr, S, N,
    x_t, x_s, x_n, y_t, y_s, y_n, weight_t, weight_s,
    LOSS: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr,
    BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program a task."""
    t = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BN).to(tl.int64)
    total = tl.zeros([BS], ACC)
    mass = tl.zeros([BS], ACC)
    for begin in range(0, S, BS):
        s = (begin + tl.arange(0, BS)).to(tl.int64)
        x, y, weight, there = block_of(
            x_ptr + t * x_t, y_ptr + t * y_t, weight_ptr + t * weight_t, s, n, S, N,
            x_s, x_n, y_s, y_n, weight_s, LOSS, HAS_WEIGHT, ACC,
        )  # fmt: skip
        total += tl.where(s < S, weight * losses(x, y, n, there, N, LOSS), 0.0)
        mass += weight
    tl.store(loss_ptr + t, tl.sum(total, 0) / tl.sum(mass, 0))


def task_loss(x: Tensor, y: Tensor, weight: Tensor | None, loss: str, dtype: torch.dtype) -> Tensor:
    """[T, S, N], labels [T, S] or targets [T, S, N], weights [T, S] or None -> [T] of `dtype`.

    loss: "cross_entropy", "mse" or "bce". At most `MOST_OUTPUTS` outputs.
    """
    tasks, samples, outputs = x.shape
    out = x.new_empty(tasks, dtype=dtype)
    given = x if weight is None else weight
    block = loss_block(samples, outputs)
    task_loss_kernel[(tasks,)](
        x, y, given, out, samples, outputs,
        *x.stride(), *targets_strides(y), *given.stride()[:2],
        LOSS=LOSSES[loss], HAS_WEIGHT=weight is not None, ACC=sums_in(dtype),
        BS=block.S, BN=block.N, num_warps=block.num_warps,
    )  # fmt: skip
    return out


def sums_in(dtype: torch.dtype) -> tl.dtype:
    """The precision of sums, for results of `dtype`."""
    return tl.float64 if dtype is torch.float64 else tl.float32


def targets_strides(y: Tensor) -> tuple[int, ...]:
    """Of task, sample and output, which labels do not have."""
    return y.stride() if y.dim() == 3 else (*y.stride(), 0)


def aot_tasks() -> Iterator[tuple[str, tuple[Any, ...], tuple[int, ...]]]:
    """What to call it, the arguments of `task_loss`, and the targets: few classes, a class for each
    thread, images; sizes of 1; weights and half precision.
    """
    for name, samples, outputs, dtype, targets in [
        ("cross_entropy", 25, 5, torch.float32, (80, 90, 100)),
        ("cross_entropy", 75, 2048, torch.float64, (90,)),
        ("mse", 10, 1, torch.float32, (90,)),
        ("cross_entropy", 1, 1, torch.float32, (90,)),
        ("mse", 1, 1, torch.float64, (90,)),
        ("bce", 100, 784, torch.bfloat16, (80, 90, 100)),
    ]:
        x = torch.empty(32, samples, outputs, device="meta", dtype=dtype)
        labels = torch.empty(32, samples, device="meta", dtype=torch.int64)
        y = labels if name == "cross_entropy" else x
        weight = torch.empty(32, samples, device="meta") if name == "bce" else None
        kind = f"{name} {samples} x {outputs} {dtype}".replace("torch.", "")
        yield kind, (x, y, weight, name, dtype), targets


def aot() -> list[AotCase]:
    """The losses of `aot_tasks`."""
    cases = []
    for kind, task, targets in aot_tasks():
        cases += cases_of(kind, partial(task_loss, *task), targets=targets)
    return cases
