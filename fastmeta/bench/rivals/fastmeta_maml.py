"""fastmeta itself, as a user calls it: the checks of `TaskBatch` are part of the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmeta import MAML, TaskBatch
from fastmeta.bench.device import CPU
from fastmeta.bench.rivals.rival import Outcome, Rival, Step, make_leaves
from fastmeta.bench.workloads import LOSSES, Problem, Workload


def build(problem: Problem) -> Step:
    return build_by(problem, _by_autograd)


def build_by(problem: Problem, mean_loss: Callable[[MAML, TaskBatch], Tensor]) -> Step:
    """A step in which `mean_loss` also adds the gradients to `.grad`."""
    module = problem.module()
    leaves = make_leaves(problem, dict(module.named_parameters()))
    meta = _maml(problem.workload, module)

    def step() -> Outcome:
        leaves.clear()
        tasks = TaskBatch(leaves.support_x, problem.support_y, leaves.query_x, problem.query_y)
        return Outcome(mean_loss(meta, tasks), leaves.gradients())

    return step


def _by_autograd(meta: MAML, tasks: TaskBatch) -> Tensor:
    loss = meta(tasks).loss.mean()
    loss.backward()
    return loss.detach()


def engine(workload: Workload, device: torch.device = CPU) -> str:
    """The engine that fastmeta takes for a workload on a device."""
    return _maml(workload, workload.module().to(device)).choice().name


def _maml(workload: Workload, module: nn.Module) -> MAML:
    loss = LOSSES[workload.loss]  # PyTorch's function
    return MAML(module, inner_lr=workload.inner_lr, inner_steps=workload.steps, loss=loss)


RIVAL = Rival("fastmeta", "fastmeta", build)
