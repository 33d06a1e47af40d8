"""The backward of `task_loss`, and the backward of that.

With slopes and curvatures as in `loss_tile`, c the share of a sample in its task's mean, g the
gradient for a task's loss and a that for what the backward returns,

    backward       for x: g c slope
    second         for g: sum c a slope;  for x: g c curvature(a)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta.kernels.aot import AotCase, cases_of
from fastmeta.kernels.launch import launchable
from fastmeta.kernels.loss_configs import loss_block
from fastmeta.kernels.loss_tile import LOSSES, block_of, curvatures, slopes
from fastmeta.kernels.task_loss import aot_tasks, sums_in, targets_strides

__all__ = ["task_loss_gradient", "task_loss_second"]


@launchable
@triton.jit
def task_loss_gradient_kernel(
    x_ptr, y_ptr, weight_ptr, grad_ptr, a_ptr, for_x_ptr, for_grad_ptr, S, N,
    x_t, x_s, x_n, y_t, y_s, y_n, weight_t, weight_s, grad_t, a_t, a_s, a_n,
    LOSS: tl.constexpr, HAS_WEIGHT: tl.constexpr, SECOND: tl.constexpr, ACC: tl.constexpr,
    BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program a task."""
    t = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BN).to(tl.int64)
    mass = mass_of(weight_ptr + t * weight_t, weight_s, S, HAS_WEIGHT, ACC, BS)
    grad = tl.load(grad_ptr + t * grad_t).to(ACC)
    for_grad = tl.zeros([BS], ACC)
    for begin in range(0, S, BS):
        s = (begin + tl.arange(0, BS)).to(tl.int64)
        x, y, weight, there = block_of(
            x_ptr + t * x_t, y_ptr + t * y_t, weight_ptr + t * weight_t, s, n, S, N,
            x_s, x_n, y_s, y_n, weight_s, LOSS, HAS_WEIGHT, ACC,
        )  # fmt: skip
        share = weight / mass
        slope = slopes(x, y, n, N, LOSS)
        if SECOND:
            a_place = s[:, None] * a_s + n[None, :] * a_n
            a = tl.load(a_ptr + t * a_t + a_place, mask=there, other=0.0).to(ACC)
            along = tl.sum(tl.where(there, a * slope, 0.0), 1)
            for_grad += tl.where(s < S, share * along, 0.0)
            slope = curvatures(x, y, a, N, LOSS)
        place = (t * S + s)[:, None] * N + n[None, :]
        tl.store(for_x_ptr + place, (grad * share)[:, None] * slope, mask=there)
    if SECOND:
        tl.store(for_grad_ptr + t, tl.sum(for_grad, 0))


@triton.jit
def mass_of(weight_ptr, weight_s, S, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, BS: tl.constexpr):
    """The sum of the task's weights, in the order of `task_loss`."""
    mass = tl.zeros([BS], ACC)
    for begin in range(0, S, BS):
        s = (begin + tl.arange(0, BS)).to(tl.int64)
        if HAS_WEIGHT:
            mass += tl.load(weight_ptr + s * weight_s, mask=s < S, other=0.0).to(ACC)
        else:
            mass += (s < S).to(ACC)
    return tl.sum(mass, 0)


def task_loss_gradient(
    grad: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, loss: str, sums: torch.dtype
) -> Tensor:
    """The gradient for x [T, S, N], of its dtype, from that for the losses [T]."""
    for_x = x.new_empty(x.shape)
    _launch(False, grad, x, x, y, weight, loss, sums, for_x, for_x)
    return for_x


def task_loss_second(
    a: Tensor, grad: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, loss: str,
    sums: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients for grad and x, of their dtypes, from that for what the gradient returned."""
    for_grad, for_x = grad.new_empty(grad.shape), x.new_empty(x.shape)
    _launch(True, grad, a, x, y, weight, loss, sums, for_x, for_grad)
    return for_grad, for_x


def _launch(
    second: bool, grad: Tensor, a: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, loss: str,
    sums: torch.dtype, for_x: Tensor, for_grad: Tensor,
) -> None:  # fmt: skip
    tasks, samples, outputs = x.shape
    given = x if weight is None else weight
    block = loss_block(samples, outputs)
    task_loss_gradient_kernel[(tasks,)](
        x, y, given, grad, a, for_x, for_grad, samples, outputs,
        *x.stride(), *targets_strides(y), *given.stride()[:2], grad.stride(0), *a.stride(),
        LOSS=LOSSES[loss], HAS_WEIGHT=weight is not None, SECOND=second, ACC=sums_in(sums),
        BS=block.S, BN=block.N, num_warps=block.num_warps,
    )  # fmt: skip


def aot() -> list[AotCase]:
    """The gradients and second backwards of `aot_tasks`."""
    cases = []
    for kind, task, targets in aot_tasks():
        cases += cases_of(f"gradient of {kind}", partial(_both, task), targets=targets)
    return cases


def _both(task: tuple[Any, ...]) -> None:
    x, of_loss = task[0], task[0].new_empty(len(task[0]))
    task_loss_gradient(of_loss, *task)
    task_loss_second(x, of_loss, *task)
