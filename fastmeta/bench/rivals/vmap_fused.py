"""``torch.func`` as meta-learning on images is often written: wrong, and the gate says so.

The gradient of the vmapped mean loss, inner gradients within, is off by percents where it passes
PyTorch's affine batch norm twice, without an error. `vmap` is right with it, and faster without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.bench.rivals.network import fused_norm
from fastmeta.bench.rivals.rival import Rival, Step
from fastmeta.bench.rivals.vmap_grad import as_step, query_loss
from fastmeta.bench.workloads import Problem, Workload


def why_not(workload: Workload) -> str | None:
    return None if workload.image else "without norms it is `vmap`, but slower"


def build(problem: Problem) -> Step:
    all_tasks = torch.func.vmap(query_loss(problem.workload, fused_norm), (None, 0, 0, 0, 0))

    def mean_loss(*arguments: Tensor) -> Tensor:
        return all_tasks(*arguments).mean()

    return as_step(problem, torch.func.grad_and_value(mean_loss))


RIVAL = Rival("vmap-fused", "torch.func: grad(vmap), fused norms", build, why_not)
