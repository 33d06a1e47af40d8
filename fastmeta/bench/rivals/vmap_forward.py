"""vmap of the forward pass alone, plain ``torch.autograd`` outside it."""

from __future__ import annotations

from functools import partial

import torch

from fastmeta.bench.rivals.network import task_loss
from fastmeta.bench.rivals.rival import Outcome, Rival, Step, make_leaves
from fastmeta.bench.workloads import Problem


def build(problem: Problem) -> Step:
    workload = problem.workload
    leaves = make_leaves(problem)
    losses = torch.func.vmap(partial(task_loss, workload))

    def step() -> Outcome:
        leaves.clear()
        fast = tuple(p.expand(workload.tasks, *p.shape) for p in leaves.parameters.values())
        for _ in range(workload.steps):
            loss = losses(fast, leaves.support_x, problem.support_y).sum()
            grads = torch.autograd.grad(loss, fast, create_graph=True)
            fast = tuple(p - workload.inner_lr * g for p, g in zip(fast, grads, strict=True))
        loss = losses(fast, leaves.query_x, problem.query_y).mean()
        loss.backward()
        return Outcome(loss.detach(), leaves.gradients())

    return step


RIVAL = Rival("vmap-forward", "vmap forward + autograd.grad", build)
