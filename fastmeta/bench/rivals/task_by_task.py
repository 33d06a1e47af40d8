"""What the rivals that take one task after another have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastmeta.bench.rivals.rival import Outcome, Step
from fastmeta.bench.workloads import Problem

# (support_x, support_y, query_x, query_y) of one task -> its query loss, differentiable
TaskLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def channels_last(x: Tensor) -> Tensor:
    """Images and the weights of convolutions: a loop of Conv4 is 1.3 times as fast with them so."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def module_of(problem: Problem) -> nn.Module:
    """The network as a module, its convolutions' weights with channels last."""
    return problem.module().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def as_step(problem: Problem, parameters: Mapping[str, Tensor], task_loss: TaskLoss) -> Step:
    """Back-propagate each task by itself, so that one task's graph is alive at a time."""
    learns_inputs = problem.workload.learns_inputs
    # One leaf a task, as an encoder would give features task by task: indexing one big leaf
    # would write the gradient of the whole batch once a task.
    support_x = [channels_last(x.detach()).requires_grad_(learns_inputs) for x in problem.support_x]
    query_x = [channels_last(x.detach()).requires_grad_(learns_inputs) for x in problem.query_x]
    inputs = {"support_x": support_x, "query_x": query_x} if learns_inputs else {}
    tasks = list(zip(support_x, problem.support_y, query_x, problem.query_y, strict=True))
    leaves = [*parameters.values(), *(x for xs in inputs.values() for x in xs)]

    def step() -> Outcome:
        for leaf in leaves:
            leaf.grad = None
        total = torch.zeros((), dtype=problem.query_x.dtype, device=problem.device)
        for task in tasks:
            loss = task_loss(*task) / len(tasks)
            loss.backward()
            total += loss.detach()
        of_inputs = {name: [x.grad for x in xs] for name, xs in inputs.items()}
        return Outcome(total, {name: p.grad for name, p in parameters.items()} | of_inputs)

    return step
