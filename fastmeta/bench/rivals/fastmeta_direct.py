"""fastmeta as its training loop runs on a CPU: `forward_backward`, the same step in one call."""

from __future__ import annotations

import torch

from fastmeta import MAML, TaskBatch
from fastmeta.bench.rivals import fastmeta_maml
from fastmeta.bench.rivals.rival import Rival, Step
from fastmeta.bench.workloads import Problem, Workload


def build(problem: Problem) -> Step:
    return fastmeta_maml.build_by(problem, _mean_loss)


def _mean_loss(meta: MAML, tasks: TaskBatch) -> torch.Tensor:
    return meta.forward_backward(tasks).loss.mean()


def _why_not(workload: Workload) -> str | None:
    if workload.learns_inputs:
        return "forward_backward leaves it to autograd to pass gradients on to what made features"
    if fastmeta_maml.engine(workload) != "resident":
        return "without the resident engine forward_backward is autograd's way"
    return None


def _why_not_on(device: torch.device) -> str | None:
    return None if device.type == "cpu" else "on a GPU forward_backward is autograd's way"


RIVAL = Rival(
    "fastmeta-direct", "forward_backward, without autograd in between", build, _why_not,
    why_not_on=_why_not_on,
)  # fmt: skip
