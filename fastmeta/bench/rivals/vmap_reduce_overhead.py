"""The compiled ``torch.func`` step, which ``torch.compile`` itself puts into a CUDA graph."""

from __future__ import annotations

import torch

from fastmeta.bench.rivals import vmap_compiled, vmap_grad
from fastmeta.bench.rivals.cuda_graph import needs_gpu
from fastmeta.bench.rivals.rival import Outcome, Rival, Step, always
from fastmeta.bench.workloads import Problem

WARM_UP = 3


def build(problem: Problem) -> Step:
    function = vmap_grad.meta_gradient(problem.workload)
    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=True, dynamic=False)
    call = vmap_grad.as_step(problem, compiled)

    def step() -> Outcome:
        torch.compiler.cudagraph_mark_step_begin()  # the last step's results may be overwritten
        return call()

    for _ in range(WARM_UP):  # the graph is captured at the second call
        step()
    return step


RIVAL = Rival(
    "vmap-reduce-overhead",
    'torch.compile(vmap(grad), mode="reduce-overhead")',
    build,
    vmap_compiled.RIVAL.why_not,
    compiles=always,
    why_not_on=needs_gpu,
)
