"""The Python loop: one task after another, as MAML is usually written in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.bench.rivals.network import fused_norm, task_loss
from fastmeta.bench.rivals.rival import Rival, Step
from fastmeta.bench.rivals.task_by_task import as_step, channels_last
from fastmeta.bench.workloads import Problem


def build(problem: Problem) -> Step:
    workload = problem.workload
    parameters = {
        name: channels_last(p.clone()).requires_grad_() for name, p in problem.parameters.items()
    }

    def query_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        fast = tuple(parameters.values())
        for _ in range(workload.steps):
            loss = task_loss(workload, fast, sx, sy, fused_norm)
            grads = torch.autograd.grad(loss, fast, create_graph=True)
            fast = tuple(p - workload.inner_lr * g for p, g in zip(fast, grads, strict=True))
        return task_loss(workload, fast, qx, qy, fused_norm)

    return as_step(problem, parameters, query_loss)


RIVAL = Rival("loop", "Python loop", build, loops_over_tasks=True)
