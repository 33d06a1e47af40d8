"""TorchOpt: a differentiable optimizer on the module itself, task by task."""

from __future__ import annotations

from torch import Tensor

from fastmeta.bench.rivals.rival import Rival, Step, needs
from fastmeta.bench.rivals.task_by_task import as_step, module_of
from fastmeta.bench.workloads import LOSSES, Problem


def build(problem: Problem) -> Step:
    import torchopt

    workload = problem.workload
    loss_function = LOSSES[workload.loss]
    module = module_of(problem)
    parameters = dict(module.named_parameters())
    optimizer = torchopt.MetaSGD(module, lr=workload.inner_lr)
    start = [torchopt.extract_state_dict(each, by="reference") for each in (module, optimizer)]

    def query_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        for _ in range(workload.steps):
            optimizer.step(loss_function(module(sx), sy))
        loss = loss_function(module(qx), qy)
        torchopt.recover_state_dict(module, start[0])
        torchopt.recover_state_dict(optimizer, start[1])
        return loss

    return as_step(problem, parameters, query_loss)


RIVAL = Rival("torchopt", "TorchOpt", build, needs("torchopt"), loops_over_tasks=True)
