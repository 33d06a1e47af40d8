"""The whole ``torch.func`` step under ``torch.compile``."""

from __future__ import annotations

import torch

from fastmeta.bench.rivals import vmap_grad
from fastmeta.bench.rivals.rival import Rival, Step, always, needs_compiler
from fastmeta.bench.workloads import Problem, Workload


def build(problem: Problem) -> Step:
    function = vmap_grad.meta_gradient(problem.workload)
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    return vmap_grad.as_step(problem, compiled)


def _why_not(workload: Workload) -> str | None:
    if workload.image:
        return "torch.compile cannot trace vmap of this step of images"
    return needs_compiler(workload)


RIVAL = Rival("vmap-compiled", "torch.compile(vmap(grad))", build, _why_not, compiles=always)
