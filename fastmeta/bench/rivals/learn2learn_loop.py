"""learn2learn: a clone of the module for each task, adapted by its ``adapt``."""

from __future__ import annotations

from importlib import import_module

from torch import Tensor

from fastmeta.bench.rivals.rival import Rival, Step, needs
from fastmeta.bench.rivals.task_by_task import as_step, module_of
from fastmeta.bench.workloads import LOSSES, Problem


def build(problem: Problem) -> Step:
    workload = problem.workload
    loss_function = LOSSES[workload.loss]
    module = module_of(problem)
    maml = import_module("learn2learn.algorithms").MAML(module, lr=workload.inner_lr)

    def query_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        learner = maml.clone()
        for _ in range(workload.steps):
            learner.adapt(loss_function(learner(sx), sy))
        return loss_function(learner(qx), qy)

    return as_step(problem, dict(module.named_parameters()), query_loss)


RIVAL = Rival("learn2learn", "learn2learn", build, needs("learn2learn"), loops_over_tasks=True)
