"""higher: a functional copy of the module and a differentiable optimizer, task by task."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.bench.rivals.rival import Rival, Step, needs
from fastmeta.bench.rivals.task_by_task import as_step, module_of
from fastmeta.bench.workloads import LOSSES, Problem


def build(problem: Problem) -> Step:
    import higher

    workload = problem.workload
    loss_function = LOSSES[workload.loss]
    module = module_of(problem)
    optimizer = torch.optim.SGD(module.parameters(), lr=workload.inner_lr)

    def query_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        context = higher.innerloop_ctx(module, optimizer, copy_initial_weights=False)
        with context as (fast, inner_optimizer):
            for _ in range(workload.steps):
                inner_optimizer.step(loss_function(fast(sx), sy))
            return loss_function(fast(qx), qy)

    return as_step(problem, dict(module.named_parameters()), query_loss)


RIVAL = Rival("higher", "higher", build, needs("higher"), loops_over_tasks=True)
