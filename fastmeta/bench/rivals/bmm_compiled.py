"""The hand-batched step and its gradient under ``torch.compile``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmeta.bench.rivals import bmm
from fastmeta.bench.rivals.rival import Rival, Step, always, needs_compiler
from fastmeta.bench.rivals.vmap_grad import as_step
from fastmeta.bench.workloads import Problem, Workload


def build(problem: Problem) -> Step:
    workload = problem.workload
    argnums = (0, 1, 2) if workload.learns_inputs else (0,)
    gradient = torch.func.grad_and_value(partial(bmm.query_loss, workload), argnums=argnums)

    def meta_gradient(parameters: tuple[Tensor, ...], *data: Any) -> tuple[list[Tensor], Tensor]:
        (of_parameters, *of_inputs), loss = gradient(list(parameters), *data)
        return [*of_parameters, *of_inputs], loss

    return as_step(problem, torch.compile(meta_gradient, fullgraph=True, dynamic=False))


def why_not(workload: Workload) -> str | None:
    return bmm.why_not(workload) or needs_compiler(workload)


RIVAL = Rival("bmm-compiled", "torch.compile(batched by hand)", build, why_not, compiles=always)
