"""fastmeta itself, as a user calls it: the checks of `TaskBatch` are part of the step."""

from __future__ import annotations

from fastmeta import MAML, TaskBatch
from fastmeta.bench.rivals.rival import Outcome, Rival, Step, make_leaves
from fastmeta.bench.workloads import Problem


def build(problem: Problem) -> Step:
    workload = problem.workload
    module = problem.module()
    leaves = make_leaves(problem, dict(module.named_parameters()))
    meta = MAML(module, inner_lr=workload.inner_lr, inner_steps=workload.steps, loss=workload.loss)

    def step() -> Outcome:
        leaves.clear()
        tasks = TaskBatch(leaves.support_x, problem.support_y, leaves.query_x, problem.query_y)
        loss = meta(tasks).loss.mean()
        loss.backward()
        return Outcome(loss.detach(), leaves.gradients())

    return step


RIVAL = Rival("fastmeta", "fastmeta", build)
