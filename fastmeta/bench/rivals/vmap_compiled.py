"""The whole ``torch.func`` step under ``torch.compile``."""

from __future__ import annotations

import torch

from fastmeta.bench.rivals import vmap_grad
from fastmeta.bench.rivals.rival import Rival, Step, always, needs_compiler
from fastmeta.bench.workloads import Problem


def build(problem: Problem) -> Step:
    function = vmap_grad.meta_gradient(problem.workload)
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    return vmap_grad.as_step(problem, compiled)


RIVAL = Rival("vmap-compiled", "torch.compile(vmap(grad))", build, needs_compiler, compiles=always)
